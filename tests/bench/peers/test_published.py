"""The original's baselines on tiny pipelines: every forward and backward is counted, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    StableDiffusionAttendAndExcitePipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
    StableDiffusionXLPipeline,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from skipstone import registry
from skipstone.errors import GuestError, SpecError, UnknownNameError
from skipstone.evaluation.checkpoints import Checkpoint, LoadedPipeline
from skipstone.evaluation.columns import expand_specs, parse_column
from skipstone.evaluation.cost import BACKWARD_COST, BackwardCallCounter, count_macs
from skipstone.evaluation.peers import Peer
from skipstone.evaluation.pipeline_subject import PipelineSubject
from skipstone.evaluation.subject import SampleRequest
from skipstone.integrations.torch import CallCounter
from skipstone.testing.guest import count_rows
from skipstone_bench.baselines import make_policy_row
from skipstone_bench.peers.published import content_tokens, cross_attention_sides
from tests.integrations.guest.families.parts import PROMPTS, call
from tests.integrations.guest.families.unets import sd, sdxl, sdxl_parts

BATCH, STEPS = 2, 5
ITEMS = [SampleRequest(PROMPTS[k], k) for k in range(BATCH)]


def tiny(kind: type = StableDiffusionPipeline) -> Any:
    pipe: Any = sd(kind) if kind is not StableDiffusionXLPipeline else sdxl()
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny()


def draw(pipe: Any, batch: int = BATCH, steps: int = STEPS, **more: Any) -> torch.Tensor:
    made: torch.Tensor = pipe(**call(pipe, batch, steps) | more).images
    return made


def under(spec: str, pipe: Any, **more: Any) -> tuple[torch.Tensor, CallCounter]:
    """A run under a peer, counted by hooks that know nothing of peers, and the bare pipeline after it as before."""
    bare, own, attributes = draw(pipe), pipe.scheduler, {n: dict(vars(m)) for n, m in pipe.unet.named_modules()}
    peer: Peer = registry.parse("peer", spec)
    assert peer.refusal_reason(pipe) is None
    with peer.apply(pipe), count_rows(pipe) as counter:
        made = draw(pipe, **more)
    assert torch.isfinite(made).all()
    assert pipe.scheduler is own
    assert type(pipe).__name__ in ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    assert {n: dict(vars(m)) for n, m in pipe.unet.named_modules()} == attributes
    assert torch.equal(draw(pipe), bare)
    return made, counter


# -- self-attention guidance ----------------------------------------------------------------------


@pytest.mark.parametrize(("guidance", "rows"), [(4.0, 3), (1.0, 2)])
def test_sag_makes_one_more_row_a_step(pipe: Any, guidance: float, rows: int) -> None:
    made, counter = under("sag", pipe, guidance_scale=guidance)
    assert counter.rows == rows * BATCH * STEPS
    assert not torch.equal(made, draw(pipe, guidance_scale=guidance))


def test_sag_is_the_pipeline_of_diffusers(pipe: Any) -> None:
    made, _ = under("sag(scale=0.5)", pipe)
    theirs = StableDiffusionSAGPipeline(**pipe.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    assert torch.equal(made, theirs(**call(pipe, BATCH, STEPS), sag_scale=0.5).images)


def test_sag_without_scale_is_the_bare_pipeline_at_its_cost(pipe: Any) -> None:
    made, counter = under("sag(scale=0.0)", pipe)
    assert counter.rows == 2 * BATCH * STEPS
    assert torch.allclose(made, draw(pipe), atol=1e-4)  # its attention is written out, and rounds otherwise


# -- Attend-and-Excite ----------------------------------------------------------------------------


def test_attend_and_excite_counts_its_forwards_and_backwards(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards: list[int] = []
    grad = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        backwards.append(1)
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    for moves in (3, 25):
        backwards.clear()
        with BackwardCallCounter(pipe.unet) as charged:
            _, counter = under(f"attend_and_excite(moves={moves}, size=4)", pipe)
        assert charged.backward == len(backwards) == min(moves, STEPS) * BATCH
        assert counter.rows == 3 * BATCH * STEPS  # those that move nothing, too
        bare = 4 * BATCH * STEPS  # `under` draws the bare pipeline twice
        assert charged.rows == counter.rows + bare
        assert charged.charged_rows == counter.rows + bare + BACKWARD_COST * len(backwards)


def test_multiply_accumulates_are_charged_by_the_same_convention(pipe: Any) -> None:
    with count_macs([pipe.unet]) as bare:
        draw(pipe)
    with registry.parse("peer", "attend_and_excite(moves=3)").apply(pipe), count_macs([pipe.unet]) as meter:
        draw(pipe)
    assert meter.rows == 3 * BATCH * STEPS
    assert meter.macs == pytest.approx(bare.macs / bare.rows * (meter.rows + BACKWARD_COST * 3 * BATCH))


def test_attend_and_excite_charges_every_round_of_its_refinement(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = StableDiffusionAttendAndExcitePipeline
    loss = kind._compute_loss

    def unsatisfied(max_attention_per_index: list[torch.Tensor]) -> torch.Tensor:
        kept: torch.Tensor = 0.01 * loss(max_attention_per_index) + 0.98
        return kept

    monkeypatch.setattr(kind, "_compute_loss", staticmethod(unsatisfied))
    with BackwardCallCounter(pipe.unet) as charged:
        _, counter = under("attend_and_excite(moves=2, size=4)", pipe, steps=3)
    # Step 0 takes 20 rounds of a forward and a backward, and one forward; then each of two steps moves once.
    assert counter.rows == BATCH * (3 * 3 + 20 + 1)
    assert charged.backward == BATCH * (20 + 2)


def test_attend_and_excite_is_the_pipeline_of_diffusers_on_all_content_tokens(pipe: Any) -> None:
    made, _ = under("attend_and_excite", pipe)
    theirs = StableDiffusionAttendAndExcitePipeline(
        **{k: v for k, v in pipe.components.items() if k != "image_encoder"}, requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)
    told = call(pipe, BATCH, STEPS)
    indices = [list(range(1, 1 + len(prompt.replace(" ", "")))) for prompt in told["prompt"]]  # a token for each letter
    assert [content_tokens(pipe.tokenizer, prompt) for prompt in told["prompt"]] == indices
    assert torch.equal(made, theirs(**told, token_indices=indices, attn_res=(4, 4)).images)


def test_where_attention_is_not_the_sizes_that_there_are_are_named(pipe: Any) -> None:
    assert cross_attention_sides(pipe.unet) == [4]
    why = registry.parse("peer", "attend_and_excite(size=16)").refusal_reason(pipe)
    assert why == "not applicable: this UNet attends to the text at 4 x 4, not at 16 x 16: set size"
    with (
        pytest.raises(GuestError, match="prompts with words"),
        registry.parse("peer", "attend_and_excite").apply(pipe),
    ):
        draw(pipe, 1, prompt=[""], negative_prompt=None)


def test_what_another_pipeline_does_not_take_is_named(pipe: Any) -> None:
    with pytest.raises(GuestError, match="takes no guidance_rescale"), registry.parse("peer", "sag").apply(pipe):
        draw(pipe, guidance_rescale=0.7)


@pytest.mark.parametrize("name", ["sag", "attend_and_excite"])
def test_a_pipeline_that_diffusers_has_removed_is_said_to_be(
    pipe: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = registry.parse("peer", name)
    monkeypatch.setattr(diffusers, peer.pipeline, None)
    assert f"has no {peer.pipeline} any more" in peer.refusal_reason(pipe)
    assert "made of the parts of a StableDiffusionPipeline" in peer.refusal_reason(tiny(StableDiffusionXLPipeline))


# -- other weights and other schedulers -----------------------------------------------------------


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> str:
    """LoRA weights that are not zero, as diffusers saves them."""
    folder, unet = tmp_path_factory.mktemp("lora"), tiny().unet
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return str(folder)


@pytest.mark.parametrize(("guidance", "rows"), [(0.0, 1), (1.0, 1), (1.5, 2)])
def test_lcm_makes_one_row_a_step_unless_it_is_guided(pipe: Any, lora: str, guidance: float, rows: int) -> None:
    seen: list[str] = []

    def note(pipe: Any, step: int, t: Any, kwargs: Any) -> Any:
        seen.append(type(pipe.scheduler).__name__)
        return kwargs

    spec = f"lcm_lora(weights={lora!r}, guidance={guidance})"
    made, counter = under(spec, pipe, steps=4, callback_on_step_end=note)
    assert counter.rows == rows * BATCH * 4
    assert seen == ["LCMScheduler"] * 4
    with registry.parse("peer", spec).apply(pipe):
        again = draw(pipe, steps=4)
    assert torch.equal(made, again)
    pipe.scheduler, own = diffusers.LCMScheduler.from_config(pipe.scheduler.config), pipe.scheduler
    without = draw(pipe, steps=4, guidance_scale=guidance)
    pipe.scheduler = own
    assert not torch.allclose(made, without, atol=1e-3)  # the weights do something


def test_weights_that_are_not_there_are_asked_for(pipe: Any, tmp_path: Path) -> None:
    bare = draw(pipe)
    for spec, of in ((f"lcm_lora(weights='{tmp_path}')", pipe), (f"sdxl_turbo(weights='{tmp_path}')", tiny_xl())):
        peer = registry.parse("peer", spec)
        with pytest.raises(GuestError, match=rf"{peer.name}\(weights='FOLDER'\)"), peer.apply(of):
            pass
    assert torch.equal(draw(pipe), bare)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="mine")
    assert "unload_lora_weights" in registry.parse("peer", "lcm_lora").refusal_reason(pipe)
    pipe.unload_lora_weights()


def tiny_xl() -> Any:
    return tiny(StableDiffusionXLPipeline)


def test_turbo_runs_its_own_weights_in_hooked_modules(tmp_path: Path) -> None:
    xl, other = tiny_xl(), tiny_xl()
    with torch.no_grad():
        for weights in other.unet.parameters():
            weights.mul_(1.1)
    other.unet.save_pretrained(tmp_path / "unet")
    made, counter = under(f"sdxl_turbo(weights='{tmp_path}')", xl, steps=4)
    assert counter.rows == BATCH * 4
    other.scheduler = EulerAncestralDiscreteScheduler.from_config(xl.scheduler.config, timestep_spacing="trailing")
    assert torch.equal(made, draw(other, steps=4, guidance_scale=0.0))
    narrow = StableDiffusionXLPipeline(**sdxl_parts(block_out_channels=(8, 8)), add_watermarker=False)
    with (
        pytest.raises(GuestError, match="of another network"),
        registry.parse("peer", f"sdxl_turbo(weights='{tmp_path}')").apply(narrow),
    ):
        pass


def test_turbo_and_loras_know_their_pipelines(pipe: Any) -> None:
    assert "StableDiffusionXLPipeline" in registry.parse("peer", "sdxl_turbo").refusal_reason(pipe)
    assert registry.parse("peer", "lcm_lora")._weights(pipe) == "latent-consistency/lcm-lora-sdv1-5"
    assert registry.parse("peer", "lcm_lora")._weights(tiny_xl()) == "latent-consistency/lcm-lora-sdxl"


def test_pndm_calls_its_second_timestep_twice(pipe: Any) -> None:
    made, counter = under("scheduler", pipe)
    assert counter.rows == 2 * BATCH * (STEPS + 1)
    assert not torch.equal(made, draw(pipe))
    why = registry.parse("peer", "scheduler(of='FlowMatchEulerDiscreteScheduler')").refusal_reason(pipe)
    assert "PNDMScheduler" in why
    assert "cannot be made from DDIMScheduler" in why


# -- as columns of a benchmark --------------------------------------------------------------------


@pytest.fixture(scope="module")
def guest() -> PipelineSubject:
    own = tiny()
    guest = PipelineSubject(LoadedPipeline.from_loaded(own), guidance_override=4.0)
    vars(guest)["pipe"] = own
    return guest


@pytest.mark.parametrize(
    ("spec", "calls", "backward"),
    [
        ("sag @ 6", 9.0, 0.0),
        ("attend_and_excite(moves=2) @ 6", 9.0 + BACKWARD_COST * 1.0, 1.0),
        ("scheduler @ 6", 7.0, 0.0),
        ("fixed @ ddim / own / 6", 6.0, 0.0),
    ],
)
def test_columns_are_charged_what_hooks_have_seen(
    guest: PipelineSubject, spec: str, calls: float, backward: float
) -> None:
    column = guest.resolve_column(parse_column(spec, None, None, 50))
    made, _ = guest.draw(ITEMS, column)
    assert [one.calls for one in made] == [calls] * BATCH
    assert [one.backward for one in made] == [backward] * BATCH
    assert guest.pictures(made)[0].shape == (16, 16, 3)


def test_lcm_is_a_column_of_half_calls(guest: PipelineSubject, lora: str) -> None:
    column = guest.resolve_column(
        parse_column(f"lcm_lora(weights={lora!r})", registry.parse("solver", "unipc"), None, 50)
    )
    assert column.steps == 4
    assert column.way == "own / 4"
    made, _ = guest.draw(ITEMS, column)
    assert [one.calls for one in made] == [2.0] * BATCH


def test_columns_know_what_peers_bring() -> None:
    own, grid = registry.parse("solver", "unipc"), registry.parse("grid", "trailing")
    said = {spec: parse_column(spec, own, grid, 50) for spec in ("sag", "sag @ ddim / 30", "sdxl_turbo @ own / 2")}
    assert (said["sag"].steps, said["sag"].solver) == (20, own)
    assert (said["sag @ ddim / 30"].steps, said["sag @ ddim / 30"].grid) == (30, grid)
    assert (said["sdxl_turbo @ own / 2"].steps, said["sdxl_turbo @ own / 2"].solver) == (2, None)
    for column in said.values():
        assert parse_column(column.spec, None, None, 9).spec == column.spec
    for wrong in ("lcm_lora @ ddim / 4", "sdxl_turbo @ karras", "scheduler @ unipc / trailing / 20"):
        with pytest.raises(SpecError, match="brings its own scheduler"):
            parse_column(wrong, own, grid, 50)
    with pytest.raises(UnknownNameError, match="Did you mean 'addiffusion'"):
        parse_column("adiffusion", own, grid, 50)


def test_the_set_of_the_original_has_exactly_its_rows() -> None:
    specs = expand_specs(["stride", "addiffusion"])
    assert specs[0] == "stride"
    rows = [make_policy_row(parse_column(spec, None, None, 50)) for spec in specs[1:]]
    assert [(row.info.label, row.info.steps) for row in rows] == [
        ("fixed @ ddim / own / 20", 20),
        ("fixed @ ddim / own / 50", 50),
        ("fixed @ dpmpp / own / 20", 20),
        ("fixed @ dpmpp / own / 50", 50),
        ("fixed @ euler / own / 20", 20),
        ("fixed @ unipc / own / 20", 20),
        ("scheduler @ 20", 20),
        ("sag @ ddim / own / 20", 20),
        ("attend_and_excite @ ddim / own / 50", 50),
        ("lcm_lora @ 4", 4),
        ("sdxl_turbo @ 4", 4),
    ]
    assert {row.info.group for row in rows} == {"fixed", "peer"}


def test_a_checkpoint_of_a_folder_runs_them_too(tiny_model: Path) -> None:
    guest = PipelineSubject(Checkpoint.find(str(tiny_model)), device="cpu")
    made, _ = guest.draw(
        [SampleRequest("a", 0)], guest.resolve_column(parse_column("sag @ ddim / own / 4", None, None, 50))
    )
    assert made[0].calls == 6.0
