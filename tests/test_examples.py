"""The examples run as users run them, with small random models in place of the pretrained ones."""

from __future__ import annotations

import importlib.util
import json
import runpy
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from skipstone import registry
from skipstone.integrations.diffusers import pipeline_specs
from tests.integrations.guest.families import build

EXAMPLES = Path(__file__).parent.parent / "examples"
ELSEWHERE = {"openai_client.py"}  # needs a server: tests/serving/test_serve_command.py


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an example in a folder of its own, as `python examples/NAME ARGUMENTS` does, and returns what it prints."""
    for kind in registry.KIND_MODULES:
        registry.names(kind)  # loads what there is, before the registry is replaced by a copy
    monkeypatch.setattr(registry, "_KINDS", {kind: dict(known) for kind, known in registry._KINDS.items()})
    monkeypatch.setattr(pipeline_specs, "_SPECS", dict(pipeline_specs._SPECS))
    monkeypatch.chdir(tmp_path)

    def run_example(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def _saved(family: str, folder: Path) -> str:
    """The folder of a small pipeline with random weights."""
    build(family).save_pretrained(folder / family)
    return str(folder / family)


def _import(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_and_listed() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    names = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert len(names) == 10
    assert all(f'"{name}"' in here and f"]({name})" in listed for name in names)


def test_sdxl(run: Callable[..., str], tmp_path: Path) -> None:
    said = run("sdxl.py", "a cat", "a dog", "--model", _saved("sdxl", tmp_path), "--steps", "12")
    assert "adaptive_grid" in said
    assert len(list(tmp_path.glob("sdxl-*.png"))) == 2


def test_flux(run: Callable[..., str], tmp_path: Path) -> None:
    said = run("flux.py", "a cat", "--model", _saved("flux", tmp_path), "--steps", "12", "--size", "32")
    assert "of 12 calls" in said
    assert (tmp_path / "flux.png").is_file()


def test_video(run: Callable[..., str], tmp_path: Path) -> None:
    size = ("--frames", "5", "--width", "32", "--height", "32")
    said = run("video.py", "a cat", "--model", _saved("wan21", tmp_path), "--steps", "12", *size)
    assert "of 12 calls" in said
    assert Image.open(tmp_path / "video.gif").n_frames >= 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_policy.py", "26 of 50 calls"),
        ("own_pipeline.py", "of 50 calls"),
        ("any_module.py", "fixed: 50.0 calls a sample"),
    ],
)
def test_examples_without_a_pretrained_model(run: Callable[..., str], name: str, said: str) -> None:
    assert said in run(name)


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "start.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile(cell["source"], cell["id"], "exec"), names)
    assert names["full"].size == names["ours"].size == (64, 64)
    assert "of 50 calls" in capsys.readouterr().out


def test_the_calibrated_service(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"a {c} {d}" for c in "abcdefgh" for d in "abcde"))
    command = [sys.executable, str(EXAMPLES / "calibrated_service.py"), "--model", str(tiny_model), "--port", "0"]
    command += ["--prompts", "prompts.txt", "--target", "psnr >= 1 @ 50%", "--steps", "6"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as service:
        timer = threading.Timer(120, service.kill)
        timer.start()
        try:
            assert service.stdout is not None
            address = next(line for line in service.stdout if line.startswith("http")).strip()
            with urllib.request.urlopen(f"{address}?prompt=a+b") as answer:
                assert Image.open(BytesIO(answer.read())).size == (64, 64)
                assert 0 < float(answer.headers["X-Network-Calls"]) <= 6
            with pytest.raises(urllib.error.HTTPError, match="Expected a prompt"):
                urllib.request.urlopen(address)
        finally:
            timer.cancel()
            service.kill()
    assert (tmp_path / "promised" / "policy.json").is_file()


class CONST:
    """The name of ComfyUI's class for flows."""


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("policy", ["balanced", "error_control"])
def test_the_node_samples_as_comfyui_asks_it_to(flow: bool, policy: str) -> None:
    """On data of one normal distribution, whose exact end is known."""
    node = _import("comfyui_node.py")
    mean, spread, told = 2.0, 0.5, []

    def model(x: torch.Tensor, sigma: torch.Tensor, cond: str) -> torch.Tensor:
        assert cond == "a cat"
        s = sigma[:, None, None, None]
        a = 1 - s if flow else torch.ones_like(s)
        return mean + a * spread**2 / ((a * spread) ** 2 + s**2) * (x - a * mean)

    sampling = CONST() if flow else object()
    model.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling))  # type: ignore[attr-defined]
    sigmas = torch.linspace(1, 0, 41) if flow else torch.cat([14.6 * torch.linspace(1, 0.3, 40) ** 7, torch.zeros(1)])
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x = noise * sigmas[0]
    made = node.sample(model, x, sigmas, {"cond": "a cat"}, told.append, policy=policy)
    start = sigmas[0] if flow else (sigmas[0] ** 2 + spread**2) ** 0.5
    first_mean = (1 - sigmas[0]) * mean if flow else torch.tensor(mean)
    assert torch.allclose(made, mean + spread * (x - first_mean) / start, atol=0.05)
    assert [d["i"] for d in told] == list(range(len(told)))
    assert 3 < len(told) < 40
    assert all(d["denoised"].shape == x.shape for d in told)


def test_the_node_is_declared_as_comfyui_reads_it() -> None:
    node = _import("comfyui_node.py")
    (kind,) = node.NODE_CLASS_MAPPINGS.values()
    assert set(kind.INPUT_TYPES()["required"]) == {"policy", "solver"}
    assert callable(getattr(kind, kind.FUNCTION))
    assert set(node.NODE_DISPLAY_NAME_MAPPINGS) == set(node.NODE_CLASS_MAPPINGS)
