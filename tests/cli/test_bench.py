"""`skipstone bench` and `skipstone report` as a shell sees them, on a tiny pipeline."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from outcome import Outcome, Shell

from skipstone import cli
from skipstone.evaluation.pipeline_subject import PipelineSubject
from skipstone_bench.store import Record, Store

PROMPTS = "a red cat\na blue dog\na green bus\na gray house\n"
QUICK = ("--limit", "2", "--tuned", "1", "--budget", "3", "--steps", "4", "--peers", "none", "--timed", "1")
EXACT = ("--converged", "fixed @ dpmpp / trailing / 6", "--converged", "fixed @ unipc / trailing / 5")
ROWS = ("-p", "third_order", "-p", "pid", "--repeats", "1")


@dataclass(frozen=True)
class Story:
    """A benchmark that was stopped, resumed, and rendered again: where it is, and what each command left behind."""

    folder: Path
    stopped: Outcome
    kept: list[Record]
    resumed: Outcome
    rendered: Outcome


@pytest.fixture(scope="module")
def story(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    (folder / "prompts.txt").write_text(PROMPTS)
    draw = PipelineSubject.draw

    def cut(self: PipelineSubject, items: Any, column: Any, watch: Any = None) -> Any:
        if column.spec.startswith("third_order"):
            raise KeyboardInterrupt
        return draw(self, items, column, watch)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(PipelineSubject, "draw", cut)
        model = ("--model", str(tiny_model), "--prompts", "prompts.txt", "--metric", "ssim")
        stopped = command(patch, "bench", *model, *QUICK, *EXACT, *ROWS)
        kept = Store.load(folder / "bench").records
        assert not (folder / "bench" / "report.html").exists()
        patch.setattr(PipelineSubject, "draw", draw)
        resumed = command(patch, "bench", "--out", "bench", "--resume")
        return Story(folder / "bench", stopped, kept, resumed, command(patch, "report", "bench"))


def command(patch: pytest.MonkeyPatch, *arguments: str) -> Outcome:
    """What a command leaves behind; the fixture `shell` is for single tests only."""
    patch.setattr(sys, "argv", ["skipstone", *arguments])
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        cli.main()
    return Outcome(int(stop.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture
def arguments(tiny_model: Path, tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    return ("bench", "--model", str(tiny_model), "--prompts", "prompts.txt", *QUICK, *EXACT, *ROWS)


def test_a_benchmark_from_one_command_and_from_where_it_was_cut_off(story: Story) -> None:
    assert story.stopped.code == 130
    assert "Stopped. What is done is kept; skipstone bench --out bench --resume goes on." in story.stopped.err
    assert story.resumed.code == 0, story.resumed.err
    store = Store.load(story.folder)
    assert story.kept
    assert store.records[: len(story.kept)] == story.kept
    rows = {row.spec: row for row in store.header.rows}
    ran = {r.row for r in store.records}
    families = {rows[spec].family for spec in ran}
    assert {"full run", "best fixed sampler", "best blind mask", "best common mask", "random"} <= families
    assert {"blind gate", "third_order"} <= families
    assert "adaptive solver" in rows["pid @ own / 4"].note
    assert all(len([r for r in store.records if r.row == spec]) == 2 for spec in ran)
    assert {t.row for t in store.timings} == ran
    assert not {line["sample"] for line in store.tuning} & {r.sample for r in store.records}
    assert {"bench/report.html", "bench/pareto.png"} <= set(story.resumed.out.split())
    assert story.rendered.code == 0
    assert "third_order" in story.resumed.out
    assert story.rendered.out == story.resumed.out


def test_results_are_neither_overwritten_nor_merged_with_others(
    shell: Shell, arguments: tuple[str, ...], story: Story, tmp_path: Path
) -> None:
    (tmp_path / "bench").mkdir()
    nothing = shell("bench", "--out", "bench", "--resume")
    assert nothing.code == 2
    assert "bench holds no bench.json" in nothing.err
    (tmp_path / "bench").rmdir()
    shutil.copytree(story.folder, tmp_path / "bench")
    taken = shell(*arguments)
    assert taken.code == 2
    assert "bench holds results already: say --resume to go on, or choose another --out." in taken.err
    for said, name in ((("--guidance", "2"), "guidance"), (("--limit", "1"), "prompts"), (("--seed", "5"), "prompts")):
        other = shell("bench", "--out", "bench", "--resume", *said)
        assert other.code == 2
        assert f"were made with {name}" in other.err


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (("--metric", "pnsr"), "No metric is called 'pnsr'. Did you mean 'psnr'?"),
        (("--metric", "judge"), "judge cannot be taken here: this model has no judge of its own"),
        (("--budget", "4"), "Expected a --budget between 1 and 3 calls, got 4."),
        (("-p", "fewer"), "leave 'fewer' out"),
        (("-p", "balanced", "-p", "adaptive_grid"), "'balanced' and 'adaptive_grid' are the same"),
        (("-p", "deepcash"), "Did you mean 'deepcache'?"),
        (("--reference", "fewer"), "Expected a --reference that is a policy"),
        (("--prompts", "binary.txt"), "binary.txt"),
        (("--prompts", "nothing.txt"), "nothing.txt"),
        (("--prompts", "absent.txt"), "absent.txt"),
        (("--category", "birds"), "no category 'birds'"),
        (("--converged", "fixed @ ddim / own"), "Expected two --converged"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_written(
    shell: Shell, arguments: tuple[str, ...], tmp_path: Path, said: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "nothing.txt").write_text("\n\n")
    found = shell(*arguments, *said)
    assert found.code == 2
    assert complaint in found.err
    assert "Traceback" not in found.err
    assert not (tmp_path / "bench").exists()


def test_the_header_says_what_makes_it_again(story: Story) -> None:
    header = json.loads((story.folder / "bench.json").read_text())
    assert header["command"].startswith("skipstone bench --model ")
    assert header["fingerprint"]["dtype"] == "float32"
    assert len(header["fingerprint"]["weights"]) == 64
    assert header["prompts"]["set"] == "prompts.txt"
    assert header["prompts"]["seeds"] == [0]
    assert header["agreement"]["samples"] == 2
    assert header["options"]["budget"] == [3]
    [first, *_] = map(json.loads, (story.folder / "samples.jsonl").read_text().splitlines())
    assert first["identical"]
    assert first["values"].keys() == {"psnr_full", "ssim_full", "psnr_converged", "ssim_converged"}
    assert (first["values"]["psnr_full"], first["values"]["ssim_full"]) == (99.0, 1.0)
