"""What users install: the wheels of all five packages, the library by itself, and the library with the others."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SATELLITES = ("skipstone-pebble", "skipstone-bench", "skipstone-train", "skipstone-track")
LARGEST = 1_000_000  # bytes of the library's wheel

ADAPT = """
import importlib.util, sys
import skipstone, torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
pipe.set_progress_bar_config(disable=True)
with skipstone.adapt(pipe, "interval(every=2)") as adapted:
    pipe("a cat", num_inference_steps=6, generator=torch.Generator().manual_seed(0), output_type="latent")
print("calls", adapted.last.calls)
for name in ("skipstone_bench", "skipstone_pebble", "skipstone_train", "skipstone_track"):
    assert importlib.util.find_spec(name) is None, name
try:
    skipstone.Pebble
except ImportError as e:
    print(e)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> wheel of every package, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheels")
    sources = [str(ROOT), *(str(ROOT / "packages" / name) for name in SATELLITES)]
    _run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder), *sources])
    return {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that is installed here but our own packages."""
    folder = tmp_path_factory.mktemp("others")
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "skipstone" not in path.name and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return folder


def _run(command: list[str], paths: tuple[Path, ...] = (), code: int = 0) -> str:
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if paths:
        variables["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=paths[0] if paths else ROOT)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def _installed(wheels: list[Path], folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", str(folder)]
    _run([*command, *map(str, wheels)])
    return folder


@pytest.fixture(scope="module")
def alone(wheels: dict[str, Path], others: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The library without the other packages."""
    return _installed([wheels["skipstone"]], tmp_path_factory.mktemp("alone")), others


@pytest.fixture(scope="module")
def together(wheels: dict[str, Path], others: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All five packages."""
    return _installed(list(wheels.values()), tmp_path_factory.mktemp("together")), others


PYTHON = [sys.executable, "-S"]  # no site-packages: what is found is what was installed into the folder
COMMAND = [*PYTHON, "-m", "skipstone"]


def test_there_is_a_wheel_of_each_package_and_that_of_the_library_is_small(wheels: dict[str, Path]) -> None:
    assert set(wheels) == {"skipstone", *SATELLITES}
    assert wheels["skipstone"].stat().st_size < LARGEST


def test_the_library_alone_adapts_a_pipeline(alone: tuple[Path, Path], tiny_model: Path) -> None:
    said = _run([*PYTHON, "-c", ADAPT, str(tiny_model)], alone)
    assert "calls" in said
    assert "skipstone.Pebble comes with the package skipstone-pebble: pip install 'skipstone[pebble]'." in said


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("bench", "bench", "bench"), ("train", "train", "train"), ("demo", "pebble", "pebble"), ("loop", "track", "loop")],
)
def test_a_command_of_a_package_that_is_missing_says_what_to_install(
    alone: tuple[Path, Path], name: str, package: str, extra: str
) -> None:
    said = _run([*COMMAND, name], alone, code=2)
    assert f"skipstone {name} comes with the package skipstone-{package}: pip install 'skipstone[{extra}]'." in said


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["generate", "a cat"], "The model pebble"),
        (["calibrate", "--prompts", "pebble-tuning", "--target", "psnr >= 30 @ 90%", "--out", "x"], "pebble"),
        (["compare", "a cat", "-p", "deepcache"], "pebble"),
    ],
)
def test_a_model_of_a_package_that_is_missing_says_what_to_install(
    alone: tuple[Path, Path], arguments: list[str], what: str
) -> None:
    said = _run([*COMMAND, *arguments], alone, code=2)
    assert what in said
    assert "pip install 'skipstone[pebble]'" in said


def test_help_and_list_work_without_the_other_packages(alone: tuple[Path, Path]) -> None:
    assert "generate" in _run([*COMMAND, "--help"], alone)
    assert "third_order" in _run([*COMMAND, "list"], alone)


def test_the_packages_bring_models_commands_and_peers(together: tuple[Path, Path]) -> None:
    listed = _run([*COMMAND, "list"], together)
    assert "deepcache" in listed
    said = _run([*COMMAND, "--help"], together)
    assert all(name in said for name in ("demo", "bench", "report", "prefer", "train"))
    code = "import skipstone; p = skipstone.Pebble.load(); print(p.name, p.problem('a cat').branches)"
    assert "pebble 2" in _run([*PYTHON, "-c", code], together)
    assert "agent" in _run([*COMMAND, "train", "--help"], together)
