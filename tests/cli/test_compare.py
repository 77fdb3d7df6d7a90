"""`skipstone compare` with a real, tiny pipeline: every artefact, counted calls, and what an interruption leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from outcome import Outcome, Shell, list_files
from PIL import Image

from skipstone import cli, registry
from skipstone.cli import progress
from skipstone.errors import BackboneError, SpecError
from skipstone.evaluation import engine_subject as bench
from skipstone.evaluation.columns import parse_column
from skipstone.integrations.torch import CallCounter
from skipstone.metrics import Metric, Sample, SetMetric
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
        bench.denoise_counted(model, [model.problem("a cat", 0, 3)], column)


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


@pytest.mark.parametrize(
    ("spec", "label", "title"),
    [
        ("safe", "safe", "safe (adaptive_grid(calls=20))"),
        ("balanced @ 30", "balanced @ 30", "balanced @ 30 (adaptive_grid)"),
        (
            "fast | budget(calls=8)",
            "fast | budget(calls=8)",
            "fast | budget(calls=8) (adaptive_grid(calls=10) | budget(calls=8))",
        ),
        ("adaptive_grid", "adaptive_grid", "adaptive_grid"),
    ],
)
def test_presets_keep_their_names_beside_what_they_stand_for(spec: str, label: str, title: str) -> None:
    column = parse_column(spec, *bench.DEFAULT_SAMPLER)
    assert (column.label, column.title) == (label, title)
    assert column.spec.startswith("adaptive_grid")


# -- Metrics and policies of others -----------------------------------------------------------------


@pytest.fixture
def more_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two metrics, registered as a plug-in would: one of each picture, one of all of them."""
    known = dict(registry._KINDS["metric"]) if registry.names("metric") else {}
    monkeypatch.setitem(registry._KINDS, "metric", known)

    @registry.register("metric")
    @dataclass(frozen=True)
    class Redness(Metric):
        """Mean of the red channel."""

        name: ClassVar[str] = "redness"
        better: ClassVar[Literal["higher", "lower"]] = "higher"
        compares: ClassVar[bool] = False

        def measure(self, sample: Sample) -> float:
            return float(sample.pixels[..., 0].mean())

    @registry.register("metric")
    @dataclass(frozen=True)
    class Count(SetMetric):
        """How many pictures there are."""

        name: ClassVar[str] = "count"
        better: ClassVar[Literal["higher", "lower"]] = "higher"
        title: ClassVar[str] = "pictures"

        def measure(self, pictures: Sequence[Any], prompts: Sequence[str], references: Sequence[Any]) -> float:
            assert len(pictures) == len(prompts) == len(references)
            return float(len(pictures))


@pytest.mark.usefixtures("more_metrics")
def test_a_registered_metric_is_in_the_table_and_in_the_records(
    shell: Shell, tiny_pebble: Path, tmp_path: Path
) -> None:
    assert compared(shell, tiny_pebble, "--out", "here").code == 0
    table = (tmp_path / "here" / "table.md").read_text().splitlines()
    head = next(line for line in table if line.startswith("| column"))
    names = ["column", "PSNR", "worst", "SSIM", "worst", "calls", "saved", "seconds"]
    assert head.strip("| ").split(" | ") == [*names, "redness", "worst", "pictures"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line.startswith("| `")]
    assert rows[0][1:5] == ["full run", "", "", ""]
    assert all(0 < float(row[8]) < 1 and 0 < float(row[9]) < 1 and row[10] == "2" for row in rows)
    for line in (tmp_path / "here" / "samples.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert list(record)[9:15] == ["seconds", "psnr", "ssim", "redness", "count", "identical"]
        assert 0 < record["redness"] < 1
        assert record["count"] == 2


MINE = """
from __future__ import annotations
from dataclasses import dataclass, replace
from typing import ClassVar
from skipstone.engine.contracts import Forecast, Plan, Policy, Run

@dataclass(frozen=True)
class Mine(Policy):
    every: int = 2
    name: ClassVar[str] = "mine"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        k = len(run.accepted_attempts)
        return replace(proposal, evaluate=Forecast(1)) if k > 2 and k % self.every else proposal

def function() -> None: ...

@dataclass(frozen=True)
class Nameless(Policy):
    pass

often = Mine(every=3)
"""


def test_a_policy_of_a_file(shell: Shell, tiny_pebble: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    columns = (
        "-p",
        "./mine.py:Mine",
        "-p",
        "./mine.py:Mine(every=3) @ ddim",
        "-p",
        "./mine.py:often | budget(calls=9)",
    )
    done = shell("compare", "a cat", "--model", str(tiny_pebble), "--steps", "12", *columns, "--repeats", "1")
    assert done.code == 0, done.err
    records = [json.loads(line) for line in (tmp_path / "comparison" / "samples.jsonl").read_text().splitlines()]
    assert [r["column"] for r in records] == [
        "fixed", "./mine.py:Mine", "./mine.py:Mine(every=3) @ ddim", "./mine.py:Mine(every=3) | budget(calls=9)"
    ]  # fmt: skip
    assert records[0]["calls"] > records[1]["calls"] > records[2]["calls"] > 0
    solver, grid = registry.parse("solver", "heun"), registry.parse("grid", "leading")
    assert all(parse_column(r["spec"], solver, grid, 3, run_files=True).spec == r["spec"] for r in records)
    with pytest.raises(SpecError, match="with --policy"):  # of a certificate, say, that somebody has handed on
        parse_column("./mine.py:Mine", solver, grid, 3)
    drawn = shell(
        "generate", "a cat", "--model", str(tiny_pebble), "--steps", "12", "--policy", "./mine.py:Mine", "--json"
    )
    assert json.loads(drawn.out)["calls"] == records[1]["calls"]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("./none.py:Mine", "There is no file ./none.py"),
        ("./mine.py", "Expected a class of ./mine.py, as in ./mine.py:Mine"),
        ("./mine.py:Mien", "./mine.py has no 'Mien'. Did you mean 'Mine'? Policies there: Mine, Nameless, often."),
        ("./mine.py:function", "./mine.py:16: function is no policy"),
        (
            "./mine.py:Nameless",
            "./mine.py:19: Nameless has no name. Add to the class: name: ClassVar[str] = 'nameless'",
        ),
        ("./mine.py:Mine(evry=3)", "./mine.py:8: Mine has no argument 'evry'. Did you mean 'every'?"),
        ("./mine.py:Mine(every=x)", "expected a number"),
        ("./mine.py:often(every=3)", "./mine.py:22: often is already a policy"),
        ("./mine.py:(", "Expected ./mine.py:Name"),
        ("./broken.py:Mine", "./broken.py:3: ZeroDivisionError: division by zero"),
        ("./torn.py:Mine", "./torn.py:2: SyntaxError"),
    ],
)
def test_a_file_without_such_a_policy(shell: Shell, tmp_path: Path, column: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("def f():\n    # divides\n    return 1 / 0\n\n\nf()\n")
    (tmp_path / "torn.py").write_text("x = 1\ny = (\n")
    done = shell("compare", "a cat", "-p", column)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
