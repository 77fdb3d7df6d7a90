"""`skipstone estimate`: seconds saved, from a few prompts; no files, not even after Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outcome import Shell, list_files

from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
from skipstone.evaluation.estimate import SavingEstimate, estimate_savings
from skipstone.evaluation.subject import SampleRequest

PROMPTS = "a red cat\na blue dog\na green bus\na black car\n"
FEW = ("--steps", "8", "--repeats", "1", "--limit", "2")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    (tmp_path / "four.txt").write_text(PROMPTS)
    return "four.txt"


def test_json_agrees_with_itself_and_nothing_is_written(
    shell: Shell, tiny_pebble: Path, prompts: str, tmp_path: Path
) -> None:
    arguments = ("--model", str(tiny_pebble), "--prompts", prompts, "-p", "interval(every=3)", "-p", "balanced", *FEW)
    done = shell("estimate", *arguments, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["pictures"], found["full_run"]) == (2, "fixed @ unipc / trailing / 8")
    every, balanced = found["policies"]
    assert (every["spec"], balanced["policy"]) == (
        "interval(every=3) @ unipc / trailing / 8",
        "balanced (adaptive_grid)",
    )
    for one in found["policies"]:
        assert one["full_calls"] == 8
        assert one["saved_seconds"] == pytest.approx(one["full_seconds"] - one["seconds"])
        assert one["saved_seconds_least"] <= one["saved_seconds"] <= one["saved_seconds_most"]
        assert len(one["psnr"]) == 2
    assert every["calls"] < 8
    assert list_files(tmp_path) == [prompts]


def test_the_table_says_what_is_saved(shell: Shell, tiny_pebble: Path, prompts: str) -> None:
    done = shell("estimate", "--model", str(tiny_pebble), "--prompts", prompts, "-p", "interval(every=3)", *FEW)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[1].split()[:3] == ["full", "run", "8.0"]
    assert "s a picture" in done.out
    assert "2 pictures in batches of 1" in done.out


def test_control_c_leaves_code_130_and_no_files(
    shell: Shell, tiny_pebble: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = EngineSubject.draw
    left = [3]

    def stopped(self: EngineSubject, *arguments: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return draw(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(EngineSubject, "draw", stopped)
    done = shell("estimate", "--model", str(tiny_pebble), "--prompts", prompts, *FEW)
    assert (done.code, done.out) == (130, "")
    assert "Nothing was written" in done.err
    assert list_files(tmp_path) == [prompts]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing option '--prompts'"),
        (("--prompts", "nothing.txt"), "No prompt set or file is called 'nothing.txt'"),
        (("--prompts", "pebble-tuning", "-p", "fixed"), "got the full run itself"),
        (("--prompts", "pebble-tuning", "-p", "fewer"), "put one there"),
    ],
)
def test_what_cannot_be_estimated(shell: Shell, arguments: tuple[str, ...], said: str) -> None:
    done = shell("estimate", *arguments)
    assert done.code == 2
    assert said in done.err


def test_progress_ends_at_its_total(tiny_pebble: Path) -> None:
    subject = EngineSubject(str(tiny_pebble), "tiny")
    full = subject.resolve_column(parse("fixed"))
    heard: list[tuple[float, float]] = []
    items = [SampleRequest(text, seed) for seed, text in enumerate(PROMPTS.splitlines()[:3])]
    (found,) = estimate_savings(
        subject, items, [parse("interval(every=3)")], full, 2, 2, lambda what, done, total: heard.append((done, total))
    )
    assert heard[-1] == (12, 12)  # 3 pictures, 2 columns, 2 repeats
    assert isinstance(found, SavingEstimate)
    assert found.overhead == pytest.approx(found.seconds - found.calls / 8 * found.full_seconds)


def parse(spec: str) -> Column:
    return parse_column(spec, *DEFAULT_SAMPLER[:2], 8)
