"""`skipstone compare` with a real, tiny pipeline: every artefact, counted calls, and what an interruption leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from outcome import Outcome, Shell, list_files
from PIL import Image

from skipstone import cli, registry
from skipstone.cli import progress
from skipstone.errors import BackboneError
from skipstone.evaluation import engine_subject as bench
from skipstone.evaluation.columns import parse_column
from skipstone.integrations.torch import CallCounter
from skipstone_pebble.model import Pebble

PROMPTS = ("a red apple", "a cat left of a rocket")
SKIPS = "third_order(tol=0.9)"
FILES = ("sheet.png", "timeline.png", "table.md", "samples.jsonl")


def compared(shell: Shell, model: Path, *more: str) -> Outcome:
    columns = ("-p", SKIPS, "-p", "fewer @ ddim / trailing", "-p", "fixed")
    return shell("compare", *PROMPTS, "--model", str(model), "--steps", "12", *columns, "--repeats", "1", *more)


def test_every_artefact_is_there_and_agrees(shell: Shell, tiny_pebble: Path, tmp_path: Path) -> None:
    done = compared(shell, tiny_pebble, "--out", "here")
    assert done.code == 0
    here = tmp_path / "here"
    records = [json.loads(line) for line in (here / "samples.jsonl").read_text().splitlines()]
    assert sorted(list_files(here)) == sorted([*FILES, *(r["picture"] for r in records)])
    assert [r["column"] for r in records[::2]] == ["fixed", SKIPS, "fewer @ ddim / trailing"]
    full, skipping, fewer = (records[k : k + 2] for k in (0, 2, 4))
    assert all(r["identical"] and r["psnr"] is None and r["calls"] == 12 for r in full)
    assert all(0 < r["psnr"] < 200 and r["calls"] < 12 and r["saving"] > 0 for r in skipping)
    mean = sum(r["calls"] for r in skipping) / 2
    assert all(mean <= r["calls"] == r["steps"] < mean + 1 for r in fewer)
    for name in ("sheet.png", "timeline.png"):
        with Image.open(here / name) as picture:
            assert min(picture.size) > 300
    table = (here / "table.md").read_text()
    assert f"| `{SKIPS}` |" in table
    assert "rounded up" in table
    assert SKIPS in done.out


def test_each_spec_in_the_records_runs_again(shell: Shell, tiny_pebble: Path, tmp_path: Path) -> None:
    compared(shell, tiny_pebble, "--out", "here")
    solver, grid = registry.parse("solver", "heun"), registry.parse("grid", "leading")
    for line in (tmp_path / "here" / "samples.jsonl").read_text().splitlines():
        record = json.loads(line)
        column = parse_column(record["spec"], solver, grid, 3)
        assert column.spec == record["spec"]
        assert column.steps == record["steps"]


def test_nothing_is_overwritten_and_nothing_computed_first(
    shell: Shell, tiny_pebble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pebble, "load", None)  # not even the weights are loaded
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "table.md").write_text("mine")
    done = compared(shell, tiny_pebble, "--out", "here")
    assert done.code == 2
    assert "--force" in done.err
    assert (tmp_path / "here" / "table.md").read_text() == "mine"


def test_ctrl_c_in_the_middle_leaves_nothing(
    shell: Shell, tiny_pebble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = progress.sample_progress_bars

    class Impatient:
        def __init__(self, *arguments: Any) -> None:
            self.inner = watching(*arguments)

        def __enter__(self) -> Any:
            self.inner.__enter__()
            return self.watch

        def __exit__(self, *error: Any) -> Any:
            return self.inner.__exit__(*error)

        def watch(self, column: int, repeat: int, sample: int, share: float) -> None:
            if column == 1 and share > 0.4:
                raise KeyboardInterrupt

    monkeypatch.setattr(progress, "sample_progress_bars", Impatient)
    done = compared(shell, tiny_pebble, "--out", "here")
    assert (done.code, list_files(tmp_path)) == (130, [])


def test_ctrl_c_while_writing_leaves_no_half_file(
    shell: Shell, tiny_pebble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []

    def replace(part: Path, target: Path, real: Any = cli.files.os.replace) -> None:
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(target)
        real(part, target)

    monkeypatch.setattr(cli.files.os, "replace", replace)
    done = compared(shell, tiny_pebble, "--out", "here")
    assert done.code == 130
    assert sorted(tmp_path / "here" / f for f in list_files(tmp_path / "here")) == sorted(tmp_path / m for m in moved)
    for path in moved:
        with Image.open(tmp_path / path) as picture:
            picture.load()


def test_calls_that_nobody_counted_are_refused(tiny_pebble: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Pebble.load(tiny_pebble)
    column = parse_column("fixed", registry.parse("solver", "ddim"), registry.parse("grid", "trailing"), 3)
    monkeypatch.setattr(CallCounter, "_count", lambda *_: None)
    with pytest.raises(BackboneError, match="3 calls, but the hook"):
        bench.counted(model, [model.problem("a cat", 0, 3)], column)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("fixed @ dpmp", "Did you mean 'dpmpp'?"),
        ("fixed @ ddim / karas", "Did you mean 'karras'?"),
        ("fixed @ ddim / karras / 0", "at least 1 step"),
        ("fixed @ ddim / karras / 20 / 3", "policy @ solver / grid / steps"),
        ("@ ddim", "policy @ solver / grid / steps"),
        ("fixed @", "policy @ solver / grid / steps"),
        ("fewer @ ddim / 20", "column to its left"),
    ],
)
def test_a_column_that_cannot_be_understood(shell: Shell, tmp_path: Path, column: str, said: str) -> None:
    done = shell("compare", "a cat", "-p", "third_order", "-p", column)
    assert (done.code, list_files(tmp_path)) == (2, [])
    assert said in done.err


def test_fewer_needs_a_column_to_its_left(shell: Shell) -> None:
    assert "to the left" in shell("compare", "a cat", "-p", "fewer", "-p", "third_order").err.replace("its", "the")


def test_one_part_after_the_at_is_told_apart_by_its_kind() -> None:
    solver, grid = registry.parse("solver", "ddim"), registry.parse("grid", "trailing")
    assert parse_column("fixed @ karras(rho=5.0)", solver, grid, 9).spec == "fixed @ ddim / karras(rho=5.0) / 9"
    assert parse_column("fixed @ euler", solver, grid, 9).spec == "fixed @ euler / trailing / 9"
    assert parse_column("fixed @ 7", solver, grid, 9).spec == "fixed @ ddim / trailing / 7"
    assert parse_column("fixed@euler/7", solver, grid, 9).label == "fixed @ euler / 7"
