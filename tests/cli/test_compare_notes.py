"""What the foot of a comparison's table says: what closeness is measured to, what saves nothing, what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from outcome import Shell

from skipstone import registry
from skipstone.errors import MetricError, SpecError
from skipstone.evaluation import converged as exact
from skipstone.evaluation.columns import Column, check_names_apart, parse_columns
from skipstone.evaluation.compare import compare
from skipstone.evaluation.engine_subject import EngineSubject
from skipstone.evaluation.subject import SampleRequest
from skipstone.evaluation.table import format_notes, format_rows
from skipstone.metrics import SSIM, Sample

ITEMS = [SampleRequest("a red apple on a blue background", 0), SampleRequest("a cat", 1)]


def columns(*specs: str, steps: int = 20) -> list[Column]:
    return parse_columns(specs, registry.parse("solver", "ddim"), registry.parse("grid", "trailing"), steps)


@pytest.fixture(scope="module")
def subject() -> EngineSubject:
    return EngineSubject("pebble", "pebble")


def test_a_run_that_is_better_than_the_full_run_is_said_to_look_worse(subject: EngineSubject) -> None:
    """DDIM with 20 steps is far from the solution: `balanced` is closer to it, and far from DDIM's errors."""
    full, ours, same = columns("fixed", "balanced", "fixed @ 15")
    told = compare(
        subject, ITEMS[:1], [ours, same], full, 1, converged=columns("fixed @ dpmpp / 60", "fixed @ unipc / 40")
    )
    note = next(note for note in format_notes(told) if note.startswith("Closeness is measured to the full run"))
    assert "fixed @ ddim / trailing / 20" in note
    assert "`balanced`" in note
    assert "`fixed @ 15`" not in note
    assert told.converged is not None
    assert told.median(1, "psnr") < told.median(2, "psnr")  # by closeness to the full run ours is worse,
    assert told.converged.median(1) > told.converged.median(2) + 9  # and by closeness to the solution it is better
    assert told.converged.median(1) > told.converged.median(0) + 9
    assert told.converged.agreement > told.converged.median(0)
    head, *rows = format_rows(told)
    assert head[5:7] == ["converged", "worst"]
    assert [row[5] for row in rows] == [f"{told.converged.median(c):.1f}" for c in range(3)]
    assert any("`converged` is PSNR" in note and "unipc / trailing / 40" in note for note in format_notes(told))
    offers = [
        sum("--with-converged" in note for note in format_notes(r)) for r in (told, replace(told, converged=None))
    ]
    assert offers == [0, 1]


def test_a_preset_stands_for_nothing_once_its_fallback_runs() -> None:
    (column,) = columns("balanced @ 30")
    assert (column.stands_for, column.title) == ("adaptive_grid", "balanced @ 30 (adaptive_grid)")
    assert column.fallback is not None
    ran = replace(column.fallback, refusal="its scheduler adds noise")
    assert (ran.stands_for, ran.title) == ("", "balanced (error_control) @ 30")


@pytest.mark.parametrize("pair", [("balanced", "adaptive_grid"), ("adaptive_grid @ 20", "balanced")])
def test_one_policy_under_two_names_is_refused_where_results_are_kept_by_spec(pair: tuple[str, str]) -> None:
    with pytest.raises(SpecError, match=r"'balanced' .*Leave out one|and 'balanced' are the same"):
        check_names_apart(columns(*pair))
    check_names_apart(columns("balanced", "balanced", "fast", "adaptive_grid(calls=9)"))


def test_nothing_is_said_where_all_columns_step_alike(subject: EngineSubject) -> None:
    full, ours = columns("fixed", "third_order(tol=0.9)")
    notes = format_notes(compare(subject, ITEMS[:1], [ours], full, repeats=1))
    assert notes == []


@pytest.mark.parametrize(("policy", "steps", "idle"), [("safe", 6, True), ("interval", 12, False), ("fixed", 6, False)])
def test_a_policy_that_saves_nothing_is_named(subject: EngineSubject, policy: str, steps: int, idle: bool) -> None:
    full, ours = columns("fixed", f"{policy} @ ddim / trailing / {steps}", steps=steps)
    notes = format_notes(compare(subject, ITEMS[:1], [ours], full, repeats=1))
    assert any(f"saves nothing here: it made {steps} calls" in note for note in notes) == idle


def test_generate_says_that_nothing_is_saved(shell: Shell) -> None:
    done = shell("generate", "a cat", "--steps", "4", "--policy", "safe")
    assert done.code == 0
    assert "saves nothing here: it made 4 calls, the full run makes 4" in done.err


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.integrations.guest.families import build

    home = tmp_path_factory.mktemp("small")
    build("sd15").save_pretrained(home)
    return home


def test_pictures_smaller_than_a_metric_needs(shell: Shell, small: Path, tmp_path: Path) -> None:
    size = ["--set", "height=8", "--set", "width=8", "--steps", "4", "--repeats", "1"]
    done = shell("compare", "a cat", "--model", str(small), "-p", "interval", *size)
    assert (done.code, done.err.count("Traceback")) == (0, 0)
    said = "ssim is left out: expected pictures of at least 11 x 11, got (8, 8)."
    assert said in done.out
    table = (tmp_path / "comparison" / "table.md").read_text()
    assert said in table
    assert "| SSIM" not in table
    records = [json.loads(line) for line in (tmp_path / "comparison" / "samples.jsonl").read_text().splitlines()]
    assert all("psnr" in record and "ssim" not in record for record in records)


def test_a_metric_that_was_not_taken_is_an_error_with_the_reason(subject: EngineSubject) -> None:
    full, ours = columns("fixed", "interval", steps=4)
    found = compare(subject, [SampleRequest("not a sentence", 0)], [ours], full, repeats=1)
    with pytest.raises(MetricError, match="expected a sentence like"):
        found.median(1, "judge")
    with pytest.raises(MetricError, match=r"fid was not measured\. There are: psnr, ssim"):
        found.worst(1, "fid")
    with pytest.raises(MetricError, match="11 x 11"):
        SSIM().measure(Sample(found.cells[0][0].pixels[:10], reference=found.cells[0][0].pixels[:10]))


def test_one_size_alone_that_a_pipeline_passes_over_is_a_warning(shell: Shell, small: Path) -> None:
    common = ["generate", "a cat", "--model", str(small), "--steps", "2", "--policy", "fixed", "--force"]
    assert "height=32 was asked for" in shell(*common, "--set", "height=32").err
    assert "was asked for" not in shell(*common, "--set", "height=32", "--set", "width=16").err


@pytest.mark.parametrize("value", ["0", "-8", "8.5", "true", "99999999", "x", "[8]"])
def test_a_size_that_is_none(shell: Shell, small: Path, value: str) -> None:
    done = shell("generate", "a cat", "--model", str(small), "--set", f"height={value}", "--set", "width=16")
    assert done.code == 2
    assert "height: expected a whole number from 1 to 16384" in done.err


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "[1, NaN]", '{"a": -Infinity}'])
def test_a_setting_that_is_no_number(shell: Shell, small: Path, value: str) -> None:
    done = shell("generate", "a cat", "--model", str(small), "--set", f"eta={value}")
    assert done.code == 2
    assert "expected finite numbers" in done.err


def test_the_size_of_pebble_is_its_own(shell: Shell) -> None:
    done = shell("generate", "a cat", "--as-guest", "--set", "height=64")
    assert done.code == 2
    assert "pebble draws pictures of one size: leave height out" in done.err


def test_identical_pictures_count_as_99_decibels(subject: EngineSubject) -> None:
    (column,) = columns("fixed", steps=3)
    pictures = subject.pictures(subject.draw(ITEMS, column)[0])
    found = exact.measure_converged(subject, ITEMS, [pictures], [column, column])
    assert (found.agreement, found.median(0), found.worst(0)) == (99.0, 99.0, 99.0)
