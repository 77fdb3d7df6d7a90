"""Every peer on a UNet, a transformer and a video transformer: it saves something, and leaves no trace."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, WanPipeline
from torch.utils.flop_counter import FlopCounterMode

import skipstone_pebble as pebble
from skipstone import registry
from skipstone.errors import GuestError, GuestWarning, SpecError
from skipstone.evaluation.peers import Peer, denoiser_of
from skipstone_bench import peers
from tests.integrations.guest.families.dits import sd3
from tests.integrations.guest.families.videos_dit import wan_network, wan_parts

STEPS = 7
PROMPTS = ["a red apple on a blue background", "a green ball"]
# What runs where; the reasons are checked below.
RUNS = {
    "pebble": ("deepcache", "pyramid_attention", "taylorseer"),
    "sd3": ("dbcache", "faster_cache", "mag_cache", "pyramid_attention", "taylorseer"),
    "wan": ("dbcache", "first_block_cache", "mag_cache", "taylorseer"),  # it calls its network for each branch
}
REASONS = {
    ("pebble", "dbcache"): "has a UNet",
    ("pebble", "faster_cache"): "halves every tensor",
    ("pebble", "first_block_cache"): "one list of transformer blocks",
    ("pebble", "mag_cache"): "one list of transformer blocks",
    ("sd3", "deepcache"): "has none",
    ("sd3", "first_block_cache"): "block is mute",
    ("wan", "deepcache"): "has none",
    ("wan", "faster_cache"): "does not tell guidance branches apart",
    ("wan", "pyramid_attention"): "does not tell guidance branches apart",
}
KINDS: dict[str, Any] = {name: registry.find_class("peer", name) for name in registry.names("peer")}
SPARING = [name for name, kind in KINDS.items() if kind.skips_work]
STRONGEST = {name: KINDS[name].settings()[-1] for name in SPARING}


def make(model: str) -> Any:
    if model == "pebble":
        pipe = StableDiffusionPipeline.from_pretrained(pebble.path(), safety_checker=None)
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    elif model == "wan":
        pipe = WanPipeline(**wan_parts(), transformer=wan_network(num_layers=4))
    else:
        pipe = sd3(layers=4)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def peer_of(spec: str) -> Peer:
    """The peer of a spec; skips the test where its package is not installed."""
    peer: Peer = registry.parse("peer", spec)
    if peer.module:
        pytest.importorskip(peer.module)
    return peer


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {model: make(model) for model in RUNS}


def draw(pipe: Any, batch: int = 2, steps: int = STEPS, **more: Any) -> torch.Tensor:
    size = {} if hasattr(pipe, "unet") else {"height": 16, "width": 16}
    if isinstance(pipe, WanPipeline):
        size |= {"num_frames": 5, "max_sequence_length": 8}
    latents: torch.Tensor = pipe(
        prompt=PROMPTS[:batch],
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(batch)],
        output_type="latent",
        return_dict=False,
        **size,
        **more,
    )[0]
    return latents


def flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def state(pipe: Any) -> dict[str, tuple[Any, ...]]:
    """All that a peer could leave on the denoiser's modules."""
    modules = denoiser_of(pipe).named_modules()
    return {name: tuple((k, id(v)) for k, v in vars(m).items() if not isinstance(v, bool)) for name, m in modules}


@pytest.mark.parametrize(("model", "name"), [(m, n) for m, names in RUNS.items() for n in names])
def test_a_peer_saves_computation_and_leaves_the_pipeline_as_it_was(model: str, name: str, pipes: Any) -> None:
    pipe = pipes[model]
    bare, cls, call = draw(pipe), type(pipe), type(pipe).__call__
    modules, cost = state(pipe), flops(lambda: draw(pipe))
    peer = peer_of(STRONGEST[name])
    assert peer.refusal_reason(pipe) is None
    with peer.apply(pipe) as seen:
        first = draw(pipe)
        spent = flops(lambda: draw(pipe))
    assert spent < 0.95 * cost
    assert not torch.equal(first, bare)
    assert torch.isfinite(first).all()
    assert seen.runs[0] == seen.runs[1]
    calls = STEPS * (2 if model == "wan" else 1)
    assert len(seen.last) == calls
    assert 0 < seen.last.count("c") < calls
    assert type(pipe) is cls
    assert cls.__call__ is call
    assert state(pipe) == modules
    assert torch.equal(draw(pipe), bare)


@pytest.mark.parametrize(("model", "name"), [(m, n) for m, names in RUNS.items() for n in names])
def test_runs_in_one_block_do_not_meet(model: str, name: str, pipes: Any) -> None:
    pipe = pipes[model]
    peer = peer_of(STRONGEST[name])
    with peer.apply(pipe):
        one = [draw(pipe, 2, 6), draw(pipe, 1, 7), draw(pipe, 2, 6)]
    with peer.apply(pipe):
        alone = draw(pipe, 1, 7)
    assert torch.equal(one[0], one[2])
    assert torch.equal(one[1], alone)


def test_an_error_in_a_run_leaves_no_trace_either(pipes: Any) -> None:
    for model, names in RUNS.items():
        pipe = pipes[model]
        bare, modules = draw(pipe, 1, 4), state(pipe)

        def stop(pipe: Any, step: int, t: Any, kwargs: Any) -> Any:
            if step == 2:
                raise KeyError("stop")
            return kwargs

        for name in names:
            peer = peer_of(name)
            with pytest.raises(KeyError), peer.apply(pipe):
                draw(pipe, 1, 4, callback_on_step_end=stop)
            assert state(pipe) == modules, name
            assert torch.equal(draw(pipe, 1, 4), bare), name


@pytest.mark.parametrize(("model", "name"), list(REASONS))
def test_where_a_peer_cannot_run_it_says_why(model: str, name: str, pipes: Any) -> None:
    peer = peer_of(name)
    why = peer.refusal_reason(pipes[model])
    assert why is not None
    assert why.startswith("not applicable: ")
    assert REASONS[model, name] in why
    with pytest.raises(GuestError, match="not applicable"), peer.apply(pipes[model]):
        pass


def test_every_peer_is_tried_on_every_model() -> None:
    tried = {(model, name) for model, names in RUNS.items() for name in names} | set(REASONS)
    assert tried == {(model, name) for model in RUNS for name in SPARING}


@pytest.mark.parametrize("name", SPARING)
def test_default_settings_are_a_curve_of_valid_specs(name: str) -> None:
    specs = KINDS[name].settings()
    assert 3 <= len(specs) <= 5
    assert len({registry.spell(registry.parse("peer", spec)) for spec in specs}) == len(specs)


@pytest.mark.parametrize("spec", ["deepcache(interval=1)", "pyramid_attention(every=1, cross=1)"])
def test_a_peer_that_saves_nothing_warns(spec: str, pipes: Any) -> None:
    pipe = pipes["pebble"]
    bare = draw(pipe, 1, 4)
    peer = peer_of(spec)
    with pytest.warns(GuestWarning, match="saved nothing in 4 calls"), peer.apply(pipe):
        inside = draw(pipe, 1, 4)
    assert torch.equal(inside, bare)


def test_other_pipelines_of_the_class_are_left_alone(pipes: Any) -> None:
    other = make("sd3")
    bare = draw(other, 1, 4)
    with peer_of(STRONGEST["dbcache"]).apply(pipes["sd3"]):
        assert torch.equal(draw(other, 1, 4), bare)
        draw(pipes["sd3"])


def test_magcache_measures_its_ratios_unseen_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make("sd3")
    entered: list[int] = []
    pipe.transformer.register_forward_pre_hook(lambda module, args: entered.append(1))
    peer = peer_of("mag_cache(threshold=0.5)")
    generator = torch.Generator().manual_seed(0)
    told = {"height": 16, "width": 16, "num_inference_steps": 6, "generator": generator}
    before = generator.get_state()
    peer.prepare(pipe, prompt=PROMPTS[0], **told)
    assert not entered
    assert torch.equal(generator.get_state(), before)
    monkeypatch.setattr("skipstone_bench.peers.blocks.measure_ratios", None)  # not measured again
    with peer.apply(pipe):
        pipe(prompt=PROMPTS[1], output_type="latent", **told)
    assert len(entered) == 6


@pytest.mark.parametrize(
    "spec", ["deepcache(interval=0)", "dbcache(threshold=-1)", "mag_cache(retention=2)", "taylorseer(what='all')"]
)
def test_settings_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(SpecError, match="try "):
        registry.parse("peer", spec)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, pipes: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install DeepCache" in str(registry.parse("peer", "deepcache").refusal_reason(pipes["pebble"]))
    assert "pip install cache-dit" in str(registry.parse("peer", "dbcache").refusal_reason(pipes["sd3"]))


def test_no_peer_announces_itself(
    pipes: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(action="ignore"):
        for model, names in RUNS.items():
            for name in names:
                with peer_of(name).apply(pipes[model]):
                    pass
    assert not caplog.records
    assert capfd.readouterr().out == ""


def test_a_peer_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the folder of peers, which is not edited otherwise."""
    monkeypatch.setitem(registry._KINDS, "peer", dict(registry._KINDS["peer"]))
    monkeypatch.setattr(peers, "__path__", [*peers.__path__, str(tmp_path)])
    (tmp_path / "sleepy.py").write_text(
        "from dataclasses import dataclass\n"
        "from skipstone.evaluation.peers import Peer\n"
        "from skipstone.registry import register\n\n"
        "@register('peer')\n"
        "@dataclass(frozen=True)\n"
        "class Sleepy(Peer):\n"
        "    name = 'sleepy'\n"
    )
    peers.import_peers()
    monkeypatch.delitem(sys.modules, f"{peers.__name__}.sleepy")
    assert "sleepy" in registry.names("peer")
