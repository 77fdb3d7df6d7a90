"""`skipstone generate` with a real, tiny pipeline: pictures, metadata, figures, and every bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from outcome import Shell, list_files
from PIL import Image

import skipstone
from skipstone.engine import trace as traces
from skipstone_pebble.model import Pebble

SKIPS = "third_order(tol=0.9)"


def test_a_picture_with_its_metadata_and_one_line_of_figures(shell: Shell, tiny_pebble: Path, tmp_path: Path) -> None:
    done = shell("generate", "a red apple", "--model", str(tiny_pebble), "--steps", "12", "--policy", SKIPS)
    assert (done.code, list_files(tmp_path)) == (0, ["a-red-apple-0.png"])
    with Image.open(tmp_path / "a-red-apple-0.png") as picture:
        assert picture.size == (64, 64)
        assert picture.text["prompt"] == "a red apple"
        assert picture.text["seed"] == "0"
        assert picture.text["spec"] == f"{SKIPS} @ unipc / trailing / 12"
        assert picture.text["version"] == skipstone.__version__
    (line,) = done.out.splitlines()
    assert line.startswith("a-red-apple-0.png")
    assert " of 12 calls" in line
    assert "  0% saved" not in line


def test_json_lines_and_traces_agree(shell: Shell, tiny_pebble: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(tiny_pebble), "--steps", "12", "--policy", SKIPS, "-n", "2", "--seed", "5"]
    done = shell("generate", "a cat", *arguments, "--trace", "--json", "--out", "made")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["seed"] for line in lines] == [5, 6]
    for line in lines:
        recorded = traces.load(Path(line["file"]).with_suffix(".trace.json"))
        assert recorded.run.cost == line["calls"] < line["full_calls"] == 12
        assert recorded.meta["spec"] == line["spec"]
        assert line["saving"] == pytest.approx(1 - line["calls"] / 12)
    told = shell("explain", "made/a-cat-5.trace.json")
    assert told.code == 0
    assert "prompt: a cat" in told.out
    assert "by third_order" in told.out


def test_the_same_seed_is_the_same_picture_alone_and_in_a_batch(
    shell: Shell, tiny_pebble: Path, tmp_path: Path
) -> None:
    common = ["generate", "a cat", "--model", str(tiny_pebble), "--steps", "6"]
    shell(*common, "--seed", "1", "--out", "alone.png")
    shell(*common, "--seed", "0", "-n", "3", "--out", "batch")
    alone, together, other = (
        np.asarray(Image.open(tmp_path / name), int) for name in ("alone.png", "batch/a-cat-1.png", "batch/a-cat-2.png")
    )
    assert abs(alone - together).max() <= 1
    assert abs(alone - other).max() > 10


def test_nothing_is_overwritten_unless_forced(
    shell: Shell, tiny_pebble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "mine.png"
    target.write_bytes(b"mine")
    with monkeypatch.context() as patch:
        patch.setattr(Pebble, "load", None)  # not even the weights are loaded
        refused = shell("generate", "a cat", "--model", str(tiny_pebble), "--out", "mine.png")
    assert (refused.code, target.read_bytes()) == (2, b"mine")
    assert "--force" in refused.err
    forced = shell("generate", "a cat", "--model", str(tiny_pebble), "--steps", "2", "--out", "mine.png", "--force")
    assert forced.code == 0
    assert target.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "thrid_order"], "Did you mean 'third_order'?"),
        (["--policy", "third_order(tool=1)"], "Did you mean 'tol'?"),
        (["--policy", "third_order(tol=-1)"], "tol"),
        (["--policy", "third_order("], "Expected 'name'"),
        (["--policy", "fewer"], "comparison"),
        (["--solver", "dpmp"], "Did you mean 'dpmpp'?"),
        (["--grid", "karas"], "Did you mean 'karras'?"),
        (["--policy", "fixed @ 0"], "at least 1 step"),
        (["--policy", f"fixed @ {'9' * 5000}"], "at most 10000 steps"),
        (["--policy", "a" * 5000], "No policy is called"),
        (["--model", "a" * 5000], "File name too long"),
        (["--out", "b" * 5000], "File name too long"),
        (["--out", "a.jpg"], "Write --out a.png"),
        (["--out", "a.webp"], "Write --out a.png"),
        (["--out", "x/a.mp4"], "Write --out x/a.png"),
        (["--model", "./nowhere"], "no folder ./nowhere"),
        (["--set", "height=64"], "--as-guest"),
        (["--out", "/dev/null/pictures"], "Cannot write"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    shell: Shell, tiny_pebble: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = shell("generate", "a cat", "--model", str(tiny_pebble), *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(shell: Shell, tiny_pebble: Path, prompt: str) -> None:
    done = shell("generate", prompt, "--model", str(tiny_pebble))
    assert done.code == 2
    assert "prompt is empty" in done.err


def test_a_number_of_pictures_below_one_is_refused(shell: Shell, tiny_pebble: Path) -> None:
    assert shell("generate", "a cat", "--model", str(tiny_pebble), "-n", "0").code == 2


def test_unknown_words_are_named_with_the_vocabulary(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    import skipstone_pebble as pebble
    from skipstone.errors import ModelError

    def missing(name: str = "pebble") -> Path:
        raise ModelError("stopped before loading")

    monkeypatch.setattr(pebble, "path", missing)
    done = shell("generate", "a red zebra")
    assert "'zebra'" in done.err
    assert "'red'" not in done.err
    assert "watermelon" in done.err


def test_ctrl_c_leaves_nothing(
    shell: Shell, tiny_pebble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pebble, "decode", interrupted)
    done = shell("generate", "a cat", "--model", str(tiny_pebble), "--steps", "2", "--out", "made", "--trace")
    assert (done.code, list_files(tmp_path)) == (130, [])
