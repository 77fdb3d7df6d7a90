"""Eyes: a CLIP's features are CLIP's own, Pebble's are its judge's, and what a look costs is counted, not guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from logs import log

from skipstone import registry
from skipstone.engine.contracts import Plan, Policy, Run
from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Query
from skipstone.errors import ModelError, SpecError
from skipstone.evaluation.cost import count_macs
from skipstone.evaluation.utility import Utility
from skipstone.integrations.features import CLIP_MEAN, CLIP_STD, LatentImageEncoder, load_clip
from skipstone.policies.agent.actions import ActionSpace, BaseSchedule
from skipstone.policies.agent.checkpoint import ActionScorer
from skipstone.policies.agent.observation import Observation
from skipstone.policies.agent.policy import Agent, AgentCheckpoint
from skipstone_pebble.judge import Judge
from skipstone_pebble.model import Pebble
from skipstone_train.agents.environment import Environment
from skipstone_train.agents.episodes import DecisionProcess, SamplePool
from skipstone_train.agents.feature_cost import build_published_observation
from skipstone_train.agents.settings import EnvironmentSettings

GUIDE = BaseSchedule((1.0, 0.9, 0.6, 0.25, 0.0))
SOLVER = "adams(of='x0')"
PROMPTS = ("a cat", "a key left of a bus")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP of random weights, as wide as ViT-L/14 in what it puts out."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=16).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokens), "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        text_config={**small, **text, "pad_token_id": 1, "projection_dim": 768},
        vision_config={**small, "image_size": 32, "patch_size": 16, "projection_dim": 768},
        projection_dim=768,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pebble() -> Pebble:
    return Pebble.load()


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def tensor(found: Any) -> torch.Tensor:
    return found if isinstance(found, torch.Tensor) else found.pooler_output


# -- CLIP -----------------------------------------------------------------------------------------------------------


def test_features_are_those_of_transformers(weights: str) -> None:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    net, tokenizer = CLIPModel.from_pretrained(weights).eval(), CLIPTokenizer.from_pretrained(weights)
    image = picture(32, 32)
    pixels = CLIPImageProcessor(
        do_resize=False, do_center_crop=False, do_rescale=False, image_mean=CLIP_MEAN, image_std=CLIP_STD
    )([image.permute(1, 2, 0).numpy()], return_tensors="pt", input_data_format="channels_last").pixel_values
    eyes = load_clip(weights)
    with torch.no_grad():
        assert torch.allclose(eyes.encode_image(image), tensor(net.get_image_features(pixels))[0], atol=1e-5)
        asked = tokenizer(["a cat"], padding="max_length", max_length=16, return_tensors="pt")
        assert torch.allclose(eyes.encode_prompt("a cat"), tensor(net.get_text_features(**asked))[0], atol=1e-5)


def test_any_picture_and_prompt_can_be_looked_at(weights: str) -> None:
    eyes = load_clip(weights)
    assert eyes.encode_image(picture(40, 72)).shape == eyes.encode_prompt("very " * 40).shape == (768,)
    grey = torch.full((3, 1, 1), 0.5)
    with torch.no_grad():
        assert torch.allclose(
            eyes.encode_image(grey.expand(3, 7, 50)), eyes.encode_image(grey.expand(3, 32, 32)), atol=1e-5
        )
        assert not torch.allclose(eyes.encode_image(picture(32, 32)), eyes.encode_image(picture(32, 32, 1)), atol=1e-3)
        assert not torch.allclose(eyes.encode_prompt("a cat"), eyes.encode_prompt("a dog"), atol=1e-3)


def test_it_is_loaded_once_and_nothing_is_downloaded(weights: str, tmp_path: Path) -> None:
    assert load_clip(weights) is load_clip(weights)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for wrong in ("nobody/has-this-clip", str(tmp_path / "missing"), str(tmp_path)):
        with pytest.raises(ModelError, match="hf download openai/clip-vit-large-patch14"):
            load_clip(wrong)


# -- Pebble ---------------------------------------------------------------------------------------------------------


def test_pebbles_own_eyes_are_what_its_judge_reads_from(pebble: Pebble) -> None:
    problem = pebble.problem(PROMPTS[0], 3)
    assert problem.feature_extractors is not None
    eyes = problem.feature_extractors("")
    found = eyes.image_features(problem.x)
    pixels = pebble.decode([problem.x])
    judge = Judge.load()
    assert found.shape == (Judge.FEATURE_WIDTH,)
    heads = judge._reader.heads
    with torch.inference_mode():
        logits = {name: head(found[None]) for name, head in heads.items()}
    chances = {name: values.softmax(-1).max(-1) for name, values in logits.items()}
    assert Judge._reading(chances, 0).objects == judge.read(pixels)[0].objects
    expected = judge._reader.features(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) * 2 - 1)
    assert torch.allclose(found, expected[0], atol=1e-5)
    assert tuple(eyes.prompt_features().tolist()) == pytest.approx(problem.prompt)


def test_the_price_of_a_look_is_counted(pebble: Pebble, weights: str) -> None:
    problem, judge = pebble.problem(PROMPTS[0]), Judge.load()._reader
    with count_macs([pebble.unet]) as called:
        pebble.backbone.predict([Query(problem.x, 1.0, problem.cond)])
    with count_macs([pebble.autoencoder.decoder.layers, judge.trunk, judge.middle]) as parts:
        judge.features(torch.from_numpy(pebble.decode([problem.x])[0]).permute(2, 0, 1)[None])
    own, theirs = build_published_observation(pebble), build_published_observation(pebble, weights)
    assert own.fee == pytest.approx(parts.macs / called.macs, abs=1e-4)
    assert own.fee > 1.0, "looking has become cheaper than a call: say so where the observation is described"
    with count_macs([judge.trunk, judge.middle]) as reading:
        judge.features(torch.zeros(1, 3, 64, 64))
    bare = LatentImageEncoder(lambda image: image, load_clip(weights).encode_image)
    with count_macs([bare]) as seeing:
        bare(picture(64, 64))
    expected = (parts.macs - reading.macs + seeing.macs) / called.macs
    assert seeing.macs > 0
    assert theirs.fee == pytest.approx(expected, abs=1e-4)
    assert (own.image, own.text, theirs.image, theirs.text) == (128, 128, 768, 768)
    assert build_published_observation(pebble, fee=0.25).fee == 0.25
    with pytest.raises(SpecError, match="fee"):
        build_published_observation(pebble, fee=-1.0)


def test_a_model_without_a_judge_wants_a_clip(tiny_model: Path, weights: str) -> None:
    model = Pebble.load(tiny_model)
    problem = model.problem("a cat")
    assert problem.feature_extractors is not None
    with pytest.raises(ModelError, match="CLIP"):
        problem.feature_extractors("")
    assert problem.feature_extractors(weights).image_features(problem.x).shape == (768,)


# -- End to end -----------------------------------------------------------------------------------------------------


def mind(sight: Observation, seed: int = 0) -> AgentCheckpoint:
    count, moves = len(sight.names), ActionSpace()
    weight = np.random.default_rng(seed).normal(size=(len(moves), count)).astype(np.float32)
    zeros = np.zeros(len(moves), np.float32)
    brain = ActionScorer(np.zeros(count, np.float32), np.ones(count, np.float32), ((weight, zeros),))
    return AgentCheckpoint(brain, moves, sight, ((1.0, GUIDE),), True, SOLVER)


@pytest.mark.parametrize("which", ["tiny", "pebble"])
def test_episodes_of_the_published_state_and_the_agent_in_use(
    which: str, tiny_model: Path, weights: str, tmp_path: Path
) -> None:
    model, by = (Pebble.load(tiny_model), weights) if which == "tiny" else (Pebble.load(), "")
    sight = Observation(("published",), published=build_published_observation(model, by))
    assert len(sight.names) == (1672 if by else 128 + 128 + 128 + 8)
    problems = [model.problem(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    pool = SamplePool(model.backbone, problems, [0 * p.x for p in problems], 4.0, PROMPTS, np.ones(2, np.float32))
    agent = mind(sight)
    solver = registry.parse("solver", SOLVER)
    utility = Utility(1.0, 0.0, 40.0)
    process = DecisionProcess(pool, solver, agent.action_space, sight, agent.base_schedules, utility)
    env = Environment(process, 2, True)
    seen, finals = env.reset(seed=0)[0], dict[int, dict[str, float]]()
    while len(finals) < 2:
        assert seen.shape == (2, len(sight.names))
        assert np.isfinite(seen).all()
        actions = [agent.action_scorer.choose(o, m) for o, m in zip(seen, env.action_masks(), strict=True)]
        seen, _, over, _, info = env.step(actions)
        for i in np.flatnonzero(over):
            finals.setdefault(int(i), {k: float(v[i]) for k, v in info["final_info"].items()})
    policy = Agent(str(agent.save(tmp_path / "agent.safetensors")), 1.0)
    for i, problem in enumerate(problems):
        result = denoise(model.backbone, problem, solver, policy)
        final = finals[i]
        assert result.run.cost == final["calls"]
        assert pool.quality(i, result.x) == pytest.approx(final["quality"], abs=1e-3)
        assert final["looks"] == pytest.approx(sight.published.fee * final["calls"])
        assert final["utility"] == pytest.approx(
            min(40.0, max(0.0, final["quality"])) - final["calls"] - final["looks"]
        )


def test_settings_say_what_looks_and_measure_its_price(tmp_path: Path) -> None:
    logged = replace(log(), ends=np.zeros((12, 8, 8, 8)))
    path = logged.save(tmp_path / "log.npz")
    settings = EnvironmentSettings(
        log=str(path), live=True, blocks=("place", "image", "quality"), actions=("continue", "skip 2", "stop 1")
    )
    env = settings.build("validation", 1)
    assert settings.observation.published == build_published_observation(Pebble.load())
    assert env.reset(seed=0)[0].shape == (1, 6 + 128 + 8)
    given = replace(settings, fee=0.5)
    assert given.observation.published.fee == 0.5
    made = given.agent(_blank(given), True, {})
    assert AgentCheckpoint.load(made.save(tmp_path / "agent.safetensors")).observation == given.observation


def _blank(settings: EnvironmentSettings) -> ActionScorer:
    count, actions = len(settings.observation.names), len(settings.actions)
    zeros = np.zeros((actions, count), np.float32)
    return ActionScorer(zeros[0], zeros[0] + 1, ((zeros, zeros[:, 0]),))


def test_a_guest_says_that_nobody_can_look(weights: str, tmp_path: Path) -> None:
    import diffusers

    import skipstone
    import skipstone_pebble as shipped

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(shipped.path(), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    sight = Observation(("published",), published=build_published_observation(Pebble.load(), weights, 1.0))
    file = mind(sight).save(tmp_path / "agent.safetensors")
    with skipstone.adapt(pipe, Agent(str(file), 1.0)), pytest.raises(SpecError, match="pipeline"):
        pipe("a cat", num_inference_steps=5, output_type="latent")


def test_nothing_is_loaded_until_somebody_looks(pebble: Pebble) -> None:
    def look(by: str) -> Any:
        raise AssertionError("looked")

    problem = replace(pebble.problem(PROMPTS[0]), grid=(1.0, 0.5, 0.0), feature_extractors=look)
    solver = registry.parse("solver", "ddim")
    assert denoise(pebble.backbone, problem, solver, registry.parse("policy", "fixed")).run.cost == 2
    with pytest.raises(AssertionError, match="looked"):
        denoise(pebble.backbone, problem, solver, _Looks())


class _Looks(Policy):
    name = "looks"
    needs = frozenset({"look"})

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return proposal
