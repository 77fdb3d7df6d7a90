"""Denoisers with quantised weights: torchao's tensors in place of weights, and diffusers' layers of GGUF files.

`make test` runs this file by itself, with torchao and gguf beside everything else: whatever imports diffusers imports
them where they are installed, a second for each process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

import skipstone
from skipstone.errors import GuestError, GuestWarning
from skipstone.integrations.identity import identity
from skipstone.integrations.weight_snapshot import SAMPLED, WeightSnapshot
from skipstone.testing.guest import BATCH_TOLERANCE, count_rows

from .families import FAMILIES, alone, build
from .families.parts import seeded

torchao = pytest.importorskip("torchao.quantization", reason="comes with `make test`: pip install torchao gguf")
gguf = pytest.importorskip("gguf")

BATCH, STEPS = 2, 12
SPECS = ("error_control(tol=0.1)", "stride(tol=0.05)")  # within the pipeline's steps, and by a takeover
Make = Callable[[Path], Any]


def quantised(family: str, config: Any) -> Any:
    """A pipeline whose denoiser torchao has quantised."""
    pipe = build(family)
    torchao.quantize_(pipe.unet if family == "sd15" else pipe.transformer, config)
    return pipe


def from_gguf(folder: Path) -> Any:
    """A FLUX whose transformer diffusers has read from a GGUF file, written here, most of its layers in Q8_0."""
    from diffusers import GGUFQuantizationConfig

    pipe = build("flux")
    config = {**pipe.transformer.config, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
    network = seeded(FluxTransformer2DModel.from_config, config)  # 32 wide: blocks of Q8_0 have 32 numbers
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "flux")
    for name, weights in network.state_dict().items():
        values = weights.numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    network.save_config(folder / "config")
    pipe.transformer = FluxTransformer2DModel.from_single_file(
        str(folder / "tiny.gguf"),
        config=str(folder / "config"),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
    )
    return pipe


KINDS: dict[str, Make] = {
    "int8 unet": lambda folder: quantised("sd15", torchao.Int8WeightOnlyConfig()),
    "int8 transformer": lambda folder: quantised("sd3", torchao.Int8WeightOnlyConfig()),
    "int8 activations": lambda folder: quantised("sd3", torchao.Int8DynamicActivationInt8WeightConfig()),
    "gguf": from_gguf,
}


def inputs(pipe: Any) -> dict[str, Any]:
    family = {"StableDiffusionPipeline": "sd15", "StableDiffusion3Pipeline": "sd3", "FluxPipeline": "flux"}
    return FAMILIES[family[type(pipe).__name__]].inputs(pipe, BATCH, STEPS) | {"output_type": "latent"}


def denoiser(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative distance."""
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_alone_what_it_is_in_a_batch(kind: str, tmp_path: Path) -> None:
    pipe = KINDS[kind](tmp_path)
    bare = pipe(**inputs(pipe)).images
    with skipstone.adapt(pipe, "fixed"):
        assert torch.equal(pipe(**inputs(pipe)).images, bare)
    rounding = max(gap(pipe(**alone(inputs(pipe), r, BATCH)).images[0], bare[r]) for r in range(BATCH))
    # activations that are rounded to 8 bits fall to either side of a tie, by how a processor adds up a batch
    assert rounding < (2e-2 if kind == "int8 activations" else 1e-6)
    for spec in SPECS:
        with skipstone.adapt(pipe, spec) as adapted, count_rows(pipe) as counter:
            together = pipe(**inputs(pipe)).images
            stats = adapted.last
            assert counter.rows == sum(s.calls * s.run.branches for s in stats)
            assert stats.saved > 0
            for r, sample in enumerate(stats):
                by_itself = pipe(**alone(inputs(pipe), r, BATCH)).images[0]
                assert adapted.last[0].decisions == sample.decisions
                assert gap(by_itself, together[r]) <= 10 * rounding


@pytest.mark.parametrize("kind", ["int8 unet", "gguf"])
def test_a_changed_weight_is_noticed(kind: str, tmp_path: Path) -> None:
    """One stored integer, written past everything that counts writes."""
    pipe = KINDS[kind](tmp_path)
    network = denoiser(pipe)
    name, weights = next((n, p) for n, p in network.named_parameters() if type(p).__name__ != "Parameter")
    before, known = WeightSnapshot.of({"net": network}), identity(pipe)
    assert WeightSnapshot.of({"net": network}).changed(before) == []
    assert identity(pipe) == known
    stored = weights.qdata if hasattr(weights, "qdata") else weights.as_tensor()
    stored.data.view(-1)[stored.numel() // SAMPLED] += 1
    assert [n.removesuffix(".qdata") for n in WeightSnapshot.of({"net": network}).changed(before)] == [f"net.{name}"]
    assert {k for k, v in identity(pipe).items() if v != known[k]} == {"weights"}


def test_identity_says_how_weights_are_stored(tmp_path: Path) -> None:
    """A certificate of one of these is refused by name on the others."""
    names = [f"tensor_types.{n}" for n in ("unet", "transformer")]
    found = {kind: identity(make(tmp_path)) for kind, make in KINDS.items()}
    said = {kind: next((facts[n] for n in names if n in facts), "") for kind, facts in found.items()}
    assert said["int8 unet"] == "50 Int8Tensor"
    assert said["int8 transformer"] == "18 Int8Tensor"
    assert said["int8 activations"] == "18 Int8Tensor (activations PerRow)"
    assert said["gguf"].endswith("GGUFParameter Q8_0")
    plain = identity(build("sd3"))
    assert not any(name in plain for name in names)
    assert len({found["int8 transformer"]["weights"], plain["weights"]}) == 2


def test_rows_that_share_one_scale_enter_together() -> None:
    """Activations scaled by the whole batch: a sample depends on its companions, in the bare pipeline too."""
    config = torchao.Int8DynamicActivationInt8WeightConfig(granularity=torchao.PerTensor())
    pipe = quantised("sd3", config)
    bare = pipe(**inputs(pipe)).images
    assert gap(pipe(**alone(inputs(pipe), 0, BATCH)).images[0], bare[0]) > 10 * BATCH_TOLERANCE
    with skipstone.adapt(pipe, SPECS[0]) as adapted, pytest.warns(GuestWarning, match=r"not independent.*PerRow"):
        pipe(**inputs(pipe))
    assert adapted.last.verified
    with skipstone.adapt(pipe, SPECS[1]), pytest.raises(GuestError, match=r"not independent.*PerRow"):
        pipe(**inputs(pipe))
    with skipstone.adapt(pipe, SPECS[1]) as adapted:  # one sample is a whole batch
        pipe(**alone(inputs(pipe), 0, BATCH))
    assert adapted.last.saved > 0
