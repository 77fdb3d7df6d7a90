"""Guests know their prompts as the engine's own loop does: the mean text state, of the prompt's branch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from domain_prompts import TRAINING

import skipstone
import skipstone_pebble as pebble
from skipstone.engine.drivers import denoise_many
from skipstone.policies.agent.actions import ActionSpace, BaseSchedule
from skipstone.policies.agent.checkpoint import ActionScorer
from skipstone.policies.agent.observation import Observation
from skipstone.policies.agent.policy import Agent, AgentCheckpoint
from skipstone.testing import letters
from skipstone.tuning.domains.fit import Inputs, fit_classifier
from skipstone.tuning.domains.report import save_domains

from .families import FAMILIES, build
from .runs import run_adapted as ran
from .runs import tiny_pipeline

PROMPTS = ["a red apple on a blue background", "a cat left of a rocket", "a fox"]
STEPS = 8


@pytest.fixture(scope="module")
def engine() -> skipstone.Pebble:
    return skipstone.Pebble.load()


def problems(model: skipstone.Pebble) -> list[Any]:
    return [model.problem(prompt, seed, STEPS) for seed, prompt in enumerate(PROMPTS)]


def guest(model: skipstone.Pebble, policy: Any, name: str = "pebble", **more: Any) -> tuple[torch.Tensor, Any]:
    kind = {"pebble": diffusers.StableDiffusionPipeline, "pebble-dit": diffusers.StableDiffusion3Pipeline}[name]
    # What the model does not have is said: some releases look for it anyway.
    without = ("safety_checker",) if name == "pebble" else ("text_encoder_3", "tokenizer_3")
    pipe = kind.from_pretrained(pebble.path(name), **dict.fromkeys(without))
    pipe.set_progress_bar_config(disable=True)
    if name == "pebble":
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    latents = torch.stack([p.x for p in problems(model)])
    asked = {"num_inference_steps": STEPS, "latents": latents, "output_type": "latent", **more}
    with skipstone.adapt(pipe, policy) as adapted:
        made = pipe(PROMPTS, guidance_scale=model.guidance, **asked)
    return made.images, adapted.last


def agent(model: skipstone.Pebble, folder: Path, seed: int) -> Agent:
    """One of random opinions, on the prompt above all."""
    states = np.array([p.prompt for p in problems(model)])
    axes = np.random.default_rng(seed).normal(size=(6, states.shape[1])) / states.std()
    sight = Observation(("place", "prompt"), tuple(states.mean(0).tolist()), tuple(map(tuple, axes.tolist())))
    moves, count = ActionSpace(), len(sight.names)
    weight = np.random.default_rng(seed).normal(size=(len(moves), count)).astype(np.float32)
    brain = ActionScorer(
        np.zeros(count, np.float32), np.ones(count, np.float32), ((weight, np.zeros(len(moves), np.float32)),)
    )
    guide = BaseSchedule((1.0, 0.95, 0.85, 0.7, 0.5, 0.25, 0.0))
    return Agent(str(AgentCheckpoint(brain, moves, sight, ((1.0, guide),)).save(folder / "agent.safetensors")), 1.0)


def test_an_agent_that_reads_the_prompt_is_the_engines_in_a_pipeline(engine: skipstone.Pebble, tmp_path: Path) -> None:
    policy = agent(engine, tmp_path, 1)
    results = denoise_many(engine.backbone, problems(engine), skipstone.solver(policy.solver), policy)
    assert len({letters(r.run) for r in results}) > 1, "all samples go one way: the prompt is not looked at"
    latents, account = guest(engine, policy)
    for result, sample, latent in zip(results, account, latents, strict=True):
        assert sample.run.prompt == pytest.approx(result.run.prompt, abs=1e-5)
        assert len(sample.run.prompt) == 128
        assert sample.decisions == letters(result.run)
        assert [a.t_next for a in sample.run.past] == pytest.approx([a.t_next for a in result.run.past])
        assert float((latent - result.x).norm() / result.x.norm()) < 1e-4


@pytest.mark.parametrize("name", ["pebble", "pebble-dit"])
def test_states_are_those_of_the_engine_where_the_pipeline_owns_the_loop(name: str) -> None:
    model = skipstone.Pebble.load(name)
    _, account = guest(model, "interval(every=2)", name, num_inference_steps=6)
    for problem, sample in zip(problems(model), account, strict=True):
        assert sample.run.prompt == pytest.approx(problem.prompt, abs=1e-5)
        assert any(problem.prompt)


def test_without_guidance_there_is_but_the_prompts_branch(engine: skipstone.Pebble) -> None:
    _, account = guest(engine.guided(1.0), "fixed", num_inference_steps=2)
    for problem, sample in zip(problems(engine), account, strict=True):
        assert sample.run.prompt == pytest.approx(problem.prompt, abs=1e-5)


def test_rows_of_a_prompt_go_to_its_own_samples() -> None:
    pipe, seen = tiny_pipeline(), []
    pipe.unet.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    account = ran(pipe, "fixed").account
    states = seen[-1]
    count = len(states) // 2
    for s, sample in enumerate(account):
        assert sample.run.prompt == pytest.approx(states[count + s].float().mean(0).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ({"prompt": "a cat"}, ["a cat"]),
        ({"prompt": ["a cat", "a dog"]}, ["a cat", "a dog"]),
        ({"prompt": "a cat", "num_images_per_prompt": 2}, ["a cat", "a cat"]),
        ({"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2}, ["a cat", "a cat", "a dog", "a dog"]),
    ],
)
@pytest.mark.parametrize("policy", ["fixed", "stride"])  # in the pipeline's loop, and in one that was taken over
def test_each_sample_knows_its_own_text(given: dict[str, Any], texts: list[str], policy: str) -> None:
    pipe = tiny_pipeline()
    with skipstone.adapt(pipe, policy) as adapted:
        pipe(**given, num_inference_steps=3, output_type="latent")
    assert [sample.run.text for sample in adapted.last] == texts


def test_each_sample_of_a_pipeline_gets_the_setting_of_its_domain(tmp_path: Path) -> None:
    classifier, _ = fit_classifier(Inputs(TRAINING))
    save_domains(tmp_path, "fixed", {"vehicle": "interval(every=2, warmup=1, tail=1)"}, classifier)
    pipe, prompts = tiny_pipeline(), ["a cart full of pears", "zxqv 4711"]
    with skipstone.adapt(pipe, tmp_path) as adapted:
        pipe(prompts, num_images_per_prompt=2, num_inference_steps=6, output_type="latent")
    assert [sample.calls for sample in adapted.last] == [4, 4, 6, 6]
    assert "by_domain(vehicle) amended" in skipstone.explain(adapted.last[0].run)


def test_embeddings_have_no_text() -> None:
    pipe = tiny_pipeline()
    states, empty = pipe.encode_prompt("a cat", "cpu", 1, True)
    with skipstone.adapt(pipe, "fixed") as adapted:
        pipe(prompt_embeds=states, negative_prompt_embeds=empty, num_inference_steps=2, output_type="latent")
    assert [sample.run.text for sample in adapted.last] == [""]
    assert any(adapted.last[0].run.prompt)


@pytest.mark.parametrize(
    ("prompt", "samples", "texts"),
    [
        (None, 2, ["", ""]),
        (["a", "b"], 3, ["", "", ""]),
        (["a", None], 2, ["", ""]),
        (("a", "b"), 4, ["a", "a", "b", "b"]),
        ([], 1, [""]),
        (7, 1, [""]),
    ],
)
def test_a_prompt_that_does_not_fit_the_samples_is_not_known(prompt: Any, samples: int, texts: list[str]) -> None:
    from skipstone.integrations.diffusers.prompt_state import sample_texts

    assert sample_texts({"prompt": prompt}, samples) == texts


@pytest.mark.parametrize("family", ["ddpm", "kandinsky22"])
def test_where_no_text_is_given_nothing_is_known(family: str) -> None:
    pipe = build(family)
    with skipstone.adapt(pipe, "fixed") as adapted:
        pipe(**FAMILIES[family].inputs(pipe, 2, 3))
    assert [sample.run.prompt for sample in adapted.last] == [(), ()]


def test_empty_tokens_are_left_out_and_frames_share_their_text() -> None:
    from skipstone.integrations.diffusers.batch_router import BatchRouter, DenoiserCall
    from skipstone.integrations.diffusers.pipeline_specs import PipelineSpec
    from skipstone.integrations.diffusers.prompt_state import mean_prompt_states
    from skipstone.integrations.diffusers.row_slicing import RowSlicer
    from skipstone.integrations.diffusers.undeclared import NetworkWatch

    words = torch.arange(1.0, 25.0).reshape(4, 2, 3)  # 2 branches x 2 samples, 2 tokens, width 3
    words[3, 1] = 0.0

    def gate(states: Any, **how: Any) -> BatchRouter:
        made = BatchRouter(RowSlicer(PipelineSpec(**how), NetworkWatch([])), samples=2)
        kwargs = {"encoder_hidden_states": states}
        made.denoiser_calls[0] = DenoiserCall(
            torch.nn.Identity(), print, (), kwargs, 4, None, torch.zeros(4), ("uncond", "cond")
        )
        return made

    expected = [(14.5, 15.5, 16.5), (19.0, 20.0, 21.0)]
    assert mean_prompt_states(gate(words)) == expected
    assert mean_prompt_states(gate(words.bfloat16())) == expected
    frames = words.repeat_interleave(5, 0)
    assert mean_prompt_states(gate(frames, repeated=frozenset({"encoder_hidden_states"}))) == expected
    for strange in (frames, words[:1], words[0], [words], words.long(), None):
        assert mean_prompt_states(gate(strange)) == [(), ()]
