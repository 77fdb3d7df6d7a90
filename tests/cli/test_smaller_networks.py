"""`skipstone search` as a shell sees it, on a tiny transformer."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from outcome import Shell

from skipstone_track.readers import read_folder
from skipstone_train.architecture import evaluator

SPACE = "depth: [1, 2]\nmlp_ratio: [1, 4]\n"
WORDS = (
    "--space space.yaml --budget 1h --train-steps 4 --rungs 2 --factor 2 --batch 4 --drawings 4 --row-steps 2 "
    "--checked 2 --picture-steps 2 --precision no --out found --check checks.txt --prompts prompts.txt"
)


@pytest.fixture
def words(tmp_path: Path, tiny_dit: Path) -> list[str]:
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "prompts.txt").write_text("a red apple on a blue background\na cat\na dog left of a cat\n")
    (tmp_path / "checks.txt").write_text("a green apple on a blue background\na dog\n")
    return ["search", "--model", str(tiny_dit), *shlex.split(WORDS)]


def test_help_teaches_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom skipstone import cli\nsys.argv = ['skipstone', 'search', '--help']\n"
        "try: cli.main()\nfinally: print(sorted({'torch', 'accelerate', 'numpy', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--objective" in done.stdout


def test_children_are_found_written_and_run(words: list[str], shell: Shell, tmp_path: Path) -> None:
    made = shell(*words, "--objective", "error, megabytes")
    assert made.code == 0, made.err
    lines = [json.loads(line) for line in (tmp_path / "found" / "evaluations.jsonl").read_text().splitlines()]
    assert len(lines) == 8  # all shapes on both rungs: the space is small, the budget is not
    assert all((tmp_path / "found" / name).is_file() for name in ("front.png", "report.md", "seen_prompts.txt"))
    report = (tmp_path / "found" / "report.md").read_text()
    assert "The space has 4 shapes" in report
    assert "| error | " in report
    front = json.loads((tmp_path / "found" / "search.json").read_text())["front"]
    record = read_folder(tmp_path / "found")
    assert (record.kind, len(record.children)) == ("search", len(front))
    assert record.children[0].metrics["error"] == front[0]["values"]["error"]
    assert record.prompts[0].context == "training"
    assert {child["choices"]["depth"] for child in front} >= {1}
    for child in front:
        details = child["details"]
        assert details["megabytes"] > 4e-6 * details["parameters"]
        assert 0 <= details["megabytes_measured"] < 100
        assert (Path(child["folder"]) / "manifest.json").is_file()
        assert "speed" in (Path(child["folder"]) / "README.md").read_text()
    command = shlex.split(made.out.splitlines()[-1].removeprefix("See one: skipstone "))
    compared = shell(*command, "--steps", "3", "--repeats", "1", "--out", "compared")
    assert compared.code == 0, compared.err


def test_a_search_that_was_stopped_goes_on(
    words: list[str], shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, measure = [0], evaluator.ChildEvaluator.measure

    def stop(self: Any, *given: Any) -> Any:
        done[0] += 1
        if done[0] == 4:
            raise KeyboardInterrupt
        return measure(self, *given)

    monkeypatch.setattr(evaluator.ChildEvaluator, "measure", stop)
    told = (*words, "--objective", "error, megabytes")
    stopped = shell(*told)
    assert (stopped.code, "the same command goes on" in stopped.err) == (130, True), stopped.err
    first = (tmp_path / "found" / "evaluations.jsonl").read_text()
    assert len(first.splitlines()) == 3
    other = shell(*told, "--seed", "1")
    assert (other.code, "Give the same to go on with it, or choose another --out" in other.err) == (2, True), other.err
    again = shell(*told, "--json")
    assert again.code == 0, again.err
    lines = (tmp_path / "found" / "evaluations.jsonl").read_text()
    assert lines.startswith(first)
    jobs = [(str(line["candidate"]), line["rung"]) for line in map(json.loads, lines.splitlines())]
    assert len(jobs) == len(set(jobs)) == 8
    assert json.loads(again.out)["front"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--budget 0.01s", "--budget: expected at least"),
        ("--budget soon", "--budget: expected a time of at most 1000h"),
        ("--objective judge,speed", "no figure is called 'speed'"),
        ("--sampler grid", "expected sampler to be one of 'tpe', 'nsga2', 'random', got 'grid'"),
        ("--train-steps 1", "Expected at least 2 training steps for 2 rungs, got 1"),
        ("--check prompts.txt", "is in both"),
        ("--model pebble", "Expected a transformer, such as pebble-dit, got a UNet2DConditionModel"),
        ("--space big.yaml", "Expected a child with depth of at most 3, that of its teacher, got 9"),
        ("--out some.json", "expected a folder"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    more: str, said: str, words: list[str], shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "big.yaml").write_text("depth: [9]\n")
    done = shell(*words, *shlex.split(more))
    assert done.code == 2, done.err
    assert said in " ".join(done.err.replace("│", " ").split())
    assert not (tmp_path / "found" / "evaluations.jsonl").exists()


def test_children_whose_figures_are_no_numbers_are_noted(
    words: list[str], shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator.ChildEvaluator, "_error", lambda self, child: float("nan"))
    done = shell(*words, "--objective", "error, megabytes")
    assert done.code == 2
    assert "The first 3 children all failed. The last one: error is nan, expected a finite number" in done.err
