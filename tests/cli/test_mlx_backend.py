"""`--backend mlx` of the commands, on a tiny model: torch's calls and pictures, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import all_commands
from outcome import Shell
from PIL import Image

pytest.importorskip("mlx.core")

from skipstone.cli.options import BackendOptions, ModelOptions
from skipstone.errors import MissingPackage
from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.cost import PeakMemory, measure_row_macs
from skipstone.evaluation.fingerprint import describe_machine, fingerprint
from skipstone.evaluation.pipeline_subject import PipelineSubject
from skipstone.evaluation.subject import SampleRequest
from skipstone.integrations.mlx import available, loading, parts
from skipstone_bench.cli.bench import _plan

QUICK = ("--steps", "5", "--solver", "ddim")
SAME = 2  # levels of 255 that a pixel may differ by, after all steps and rounding


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path)).astype(int)


def test_generate_draws_torchs_picture(shell: Shell, tiny_pebble: Path, tmp_path: Path) -> None:
    command = ("generate", "a red cat", "--model", str(tiny_pebble), *QUICK, "-p", "stride", "--json", "-n", "2")
    ours, theirs = (shell(*command, "--backend", name, "--out", name) for name in ("mlx", "torch"))
    assert (ours.code, theirs.code) == (0, 0), ours.err
    assert "MLX held at most" in ours.err
    assert "MLX" not in theirs.err
    for one, other in zip(ours.out.splitlines(), theirs.out.splitlines(), strict=True):
        mine, its = json.loads(one), json.loads(other)
        assert (mine["calls"], mine["spec"], mine["seed"]) == (its["calls"], its["spec"], its["seed"])
        assert mine["settings"] == {"backend": "mlx", "dtype": "float32"}
        assert np.abs(pixels(tmp_path / mine["file"]) - pixels(tmp_path / its["file"])).max() <= SAME


def test_compare_gives_torchs_table(shell: Shell, tiny_pebble: Path) -> None:
    command = ("compare", "a red cat", "a dog", "--model", str(tiny_pebble), *QUICK, "--repeats", "1", "--json")
    columns = ("-p", "third_order", "-p", "fewer")
    ours, theirs = (shell(*command, *columns, "--backend", name, "--out", name) for name in ("mlx", "torch"))
    assert (ours.code, theirs.code) == (0, 0), ours.err
    for one, other in zip(ours.out.splitlines(), theirs.out.splitlines(), strict=True):
        mine, its = json.loads(one), json.loads(other)
        assert mine["calls"] == its["calls"]
        assert mine["spec"] == its["spec"]
        if mine["psnr"] is not None:
            assert abs(mine["psnr"] - its["psnr"]) <= 0.1


def test_a_certificate_of_mlx_is_of_mlx(shell: Shell, tiny_pebble: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"a cat number {k}\n" for k in range(16)))
    model = ("--model", str(tiny_pebble), *QUICK)
    run = ("--prompts", "prompts.txt", "--target", "psnr >= 1 @ 50%", "--confidence", "0.6", "--cache", "cache")
    made = shell("calibrate", *model, *run, "--setting", "stride", "--backend", "mlx", "--out", "mine")
    assert made.code == 0, made.err
    drawn = shell("generate", "a red cat", "--model", str(tiny_pebble), "-p", "mine", "--backend", "mlx")
    assert drawn.code == 0, drawn.err
    refused = shell("generate", "a red cat", "--model", str(tiny_pebble), "-p", "mine", "--force")
    assert refused.code == 2
    assert "MLX StableDiffusionPipeline" in refused.err
    assert "It was made on MLX: --backend mlx" in refused.err
    audited = shell("audit", "mine", "--samples", "2", "--cache", "cache")
    assert audited.code == 0, audited.err


def test_bench_wants_no_peers_and_measures_what_mlx_measures(shell: Shell, tiny_pebble: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\na blue dog\n")
    command = ("bench", "--model", str(tiny_pebble), "--prompts", "prompts.txt", "--backend", "mlx")
    refused = shell(*command)
    assert refused.code == 2
    assert "--peers none" in refused.err
    assert not (tmp_path / "bench").exists()
    names = [parameter.name for parameter in all_commands()["bench"].params]
    values = dict.fromkeys(names) | {"model": str(tiny_pebble), "prompts": "prompts.txt", "backend": "mlx"}
    values |= {"peers": ["none"], "dtype": "float32", "limit": 1, "steps": 30, "seeds": 1, "seed": 0, "tuned": 1}
    values |= {"policies": ["third_order"], "metrics": ["psnr"], "reference": "fixed", "tuning": ""}
    subject = _plan(values).subject
    found = fingerprint(subject, (), ())
    assert (found["dtype"], found["device"].split()[0]) == ("float32", "mlx")
    assert "mlx" in describe_machine(subject)
    full = subject.resolve_column(parse_column("fixed @ ddim / 2", None, None, 2))
    peak = PeakMemory(subject.denoisers)
    peak.begin()
    assert measure_row_macs(subject, SampleRequest("a cat", 0), full, 2) == 1.0
    subject.draw([SampleRequest("a cat", 0)], full)
    assert (peak.bytes() or 0) > 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--backend", "mlxx"), 2, "Did you mean"),
        (("--backend", "mlx", "--bits", "5"), 2, "expected 8 or 4"),
        (("--backend", "mlx", "--memory-limit", "much"), 2, "8GB"),
        (("--bits", "4"), 2, "--bits is for MLX"),
        (("--memory-limit", "8GB"), 2, "--memory-limit is for MLX"),
        (("--backend", "mlx", "--device", "cpu"), 2, "--device is for pipelines of diffusers"),
        (("--backend", "mlx", "--as-guest"), 2, "--as-guest is for pipelines of diffusers"),
        (("--backend", "mlx", "--set", "eta=1"), 2, "height, width, negative_prompt"),
        (("--backend", "mlx", "--set", "height=7"), 2, "multiples of 8 pixels"),
        (("--backend", "mlx", "--set", "height=high"), 2, "whole number"),
        (("--backend", "mlx", "--dtype", "float8"), 2, "float16"),
        (("--backend", "mlx", "-p", "third_order | refine"), 2, "Leave `refine` out, or run it"),
        (("--backend", "mlx", "-p", "deepcache"), 2, "--as-guest"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: tuple[str, ...], code: int, said: str, shell: Shell, tiny_pebble: Path, tmp_path: Path
) -> None:
    found = shell("generate", "a red cat", "--model", str(tiny_pebble), *QUICK, *options)
    assert found.code == code, found.err
    assert said in found.err.replace("\n", " ")
    assert "Traceback" not in found.err
    assert not list(tmp_path.glob("*.png"))


def test_auto_says_why_it_takes_torch(
    shell: Shell, tiny_pebble: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ("generate", "a red cat", "--model", str(tiny_pebble), *QUICK, "-p", "fixed", "--backend", "auto")
    monkeypatch.setattr(available, "is_apple_silicon", lambda: False)
    found = shell(*command)
    assert "auto takes torch" in found.err
    assert "is no Mac with Apple silicon" in found.err
    monkeypatch.setattr(available, "is_apple_silicon", lambda: True)
    found = shell(*command, "--force")
    assert "auto takes torch" not in found.err
    assert "MLX held" in found.err
    index = tiny_pebble / "model_index.json"
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(index.read_text().replace("StableDiffusionPipeline", "KandinskyPipeline"))
    found = shell("generate", "a red cat", "--model", str(other), "--backend", "auto")
    assert "auto takes torch" in found.err
    assert "KandinskyPipeline" in found.err


def test_what_auto_leaves_to_torch_runs_on_the_gpu_of_a_mac(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(available, "is_apple_silicon", lambda: True)
    monkeypatch.setattr(parts, "reason_against", lambda model: "its denoiser is not ported")
    found = ModelOptions(str(tiny_model)).subject(None, BackendOptions("auto"))
    assert isinstance(found, PipelineSubject)
    assert found.device == "mps"
    assert "auto takes torch on mps: its denoiser is not ported." in capsys.readouterr().err
    chosen = ModelOptions(str(tiny_model), device="cpu").subject(None, BackendOptions("auto"))
    assert isinstance(chosen, PipelineSubject)
    assert chosen.device == "cpu"


def test_a_machine_without_mlx(shell: Shell, tiny_pebble: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("generate", "a red cat", "--model", str(tiny_pebble), *QUICK, "-p", "fixed")

    def absent() -> None:
        raise MissingPackage("MLX is not installed.")

    monkeypatch.setattr(available, "require_mlx", absent)
    found = shell(*command, "--backend", "mlx")
    assert (found.code, "MLX is not installed" in found.err) == (2, True)
    monkeypatch.setattr(available, "is_apple_silicon", lambda: True)
    found = shell(*command, "--backend", "auto")
    assert found.code == 0
    assert "auto takes torch on cpu: MLX is not installed" in found.err


@pytest.mark.parametrize(
    ("size", "found"), [("8GB", 8 * 10**9), ("512 MiB", 512 * 2**20), ("1.5gb", 15 * 10**8), (2_000_000, 2_000_000)]
)
def test_sizes(size: int | str, found: int) -> None:
    assert available.parse_size(size) == found


def test_the_package_mlx_is_found_where_the_library_is() -> None:
    assert loading.require_mlx() is None
    assert "mlx.core" in sys.modules
