"""An evaluation's folder as scores and as a report: made of records by hand, so that every figure is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skipstone.errors import BenchError
from skipstone_bench.store import Header, Record, RowInfo, Store
from skipstone_research.agents.figures import _hull, draw_figures
from skipstone_research.agents.loaded_evaluation import EVALUATION_FILE, load_evaluation
from skipstone_research.agents.report import VerdictReport, write_report

THINGS = ("dog", "bus", "fox", "key", "crab")
PROMPTS = [f"a {thing} on a {ground} background" for thing in THINGS for ground in ("red", "blue")]
PROMPTS += [f"a cat above a {thing} on a blue background" for thing in THINGS]
SAMPLES = len(PROMPTS)


def records(spec: str, calls: Any, psnr: Any) -> list[Record]:
    """Fifteen samples; SSIM and the judge follow PSNR."""
    calls, psnr = (np.broadcast_to(np.asarray(v, float), SAMPLES) for v in (calls, psnr))
    found = []
    for i, text in enumerate(PROMPTS):
        values = {"psnr_converged": psnr[i], "ssim_converged": 1 - 10 ** (-psnr[i] / 30), "judge": 0.9}
        found.append(Record(spec, f"p{i}:0", text, f"p{i}", "", 0, calls[i], 0.0, 0.0, None, None, values))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two trainings at 10 calls, 2 and 3 dB ahead of a line of fixed rows; 40 dB in full."""
    hard = np.linspace(-2, 2, SAMPLES)
    parts = [
        ("full", "full run", "full", math.nan, "", 50, 40 + hard),
        ("f8", "fixed / 8", "fixed", math.nan, "", 8, 30 + hard),
        ("f12", "fixed / 12", "fixed", math.nan, "", 12, 34 + hard),
        ("a0", "agent 0", "agent", 1.0, "seed 0", 10, 34 + hard),
        ("a1", "agent 1", "agent", 1.0, "seed 1", 10, 35 + hard),
        ("b0", "agent 0, dear", "agent", 2.0, "seed 0", 8, 31 + hard),
    ]
    rows = tuple(RowInfo(spec, name, "ours" if kind == "agent" else "fixed", name) for spec, name, kind, *_ in parts)
    header = Header("0", "made up", {}, None, {}, "full", ("x", "y"), "a machine", "today", "a command",
                    {"count": SAMPLES, "source": "by hand"}, rows)  # fmt: skip
    store = Store.create(tmp_path / "verdicts", header)
    for spec, *_, calls, psnr in parts:
        store.append(*records(spec, calls, psnr))
    keys = ("spec", "name", "kind", "price", "run")
    told = {
        "price": 1.0, "bounds": [10.0, 50.0],
        "parts": [{k: v for k, v in zip(keys, part, strict=False) if v == v} for part in parts],
        "trainings": [{"name": "seed 0", "first": 1.0, "best": 3.0, "random": 0.0, "fixed": 2.0,
                       "actions": {"continue": 0.6, "stop": 0.4}}],
        "memory": {"peak": 10**8, "total": 10**10, "largest": 9000},
    }  # fmt: skip
    store.write(EVALUATION_FILE, json.dumps(told).encode())
    return store.folder


def lines(path: Path, calls: float, psnr: Any, **more: Any) -> Path:
    psnr = np.broadcast_to(np.asarray(psnr, float), SAMPLES)
    path.write_text("".join(
        json.dumps({"sample": f"p{i}:0", "calls": calls, "psnr": psnr[i], **more}) + "\n" for i in range(SAMPLES)
    ))  # fmt: skip
    return path


def test_every_figure_is_that_of_the_records(folder: Path, tmp_path: Path) -> None:
    hard = np.linspace(-2, 2, SAMPLES)
    ceiling = lines(tmp_path / "c.jsonl", 10, 35 + hard, price=1.0)
    report, written = write_report(folder, ceiling=ceiling, command="again")
    assert [path.name for path in written] == ["hypotheses.html", "hypotheses.md", "hypotheses.json"]
    found = json.loads((folder / "hypotheses.json").read_text())
    verdicts = {v["name"]: v for v in (*found["hypotheses"], *found["gates"])}

    h2 = verdicts["H2"]  # 34.5 dB in the mean of both trainings; at 10 calls the fixed rows mix to 32
    assert h2["holds"] is True
    assert h2["figures"]["mean"] == pytest.approx(2.5)
    assert h2["figures"]["rival"] == "fixed / 8 mixed with 50% fixed / 12"
    assert {name: f["mean"] for name, f in h2["figures"]["trainings"].items()} == pytest.approx(
        {"seed 0": 2.0, "seed 1": 3.0}
    )
    closed = verdicts["gap to the ceiling"]["figures"]  # utilities 24.5, 22 and 25
    assert (closed["agent"], closed["fixed"], closed["beyond"]) == pytest.approx((24.5, 22.0, 25.0))
    assert closed["closed"] == pytest.approx(2.5 / 3)
    assert verdicts["gap to the ceiling"]["holds"] is True
    assert verdicts["H1"]["holds"] is False  # 5.5 dB worse than the full run
    assert verdicts["H3"]["holds"] is False  # 10 calls for everything
    assert verdicts["G0"]["holds"] is True
    assert verdicts["G1"]["holds"] is True
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["agent 0, dear"]["utility"] == pytest.approx(31 - 2 * 8)  # at its own price
    assert found["about"]["report"] == "again"
    assert report.document == found


def test_the_page_and_the_table_say_the_same(folder: Path) -> None:
    report, _ = write_report(folder)
    page, text = (folder / "hypotheses.html").read_text(), (folder / "hypotheses.md").read_text()
    for verdict in (*report.hypotheses, *report.gates):
        assert f"| **{verdict.name}** |" in text
        assert f"<b>{verdict.name} " in page
    assert page.count("<svg") == 3
    assert "src=" not in page
    assert "<script" not in page
    assert "| `agent 0` | agent | 10.00 | 34.00 |" in text


def test_an_oracle_of_another_price_or_of_other_samples_is_refused(folder: Path, tmp_path: Path) -> None:
    assert load_evaluation(folder, oracle=lines(tmp_path / "o.jsonl", 8, 40)).scores.first_of("oracle") is not None
    with pytest.raises(BenchError, match="no scores of samples at price 1"):
        load_evaluation(folder, oracle=lines(tmp_path / "o.jsonl", 8, 40, price=2.0))
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"sample": "q:0", "calls": 8, "psnr": 40}) + "\n")
    with pytest.raises(BenchError, match="none of its samples was evaluated here"):
        load_evaluation(folder, oracle=other)


def test_a_folder_without_a_finished_evaluation(folder: Path, tmp_path: Path) -> None:
    (folder / EVALUATION_FILE).write_text("{}")
    with pytest.raises(BenchError, match="no finished evaluation"):
        load_evaluation(folder)
    with pytest.raises(BenchError, match=r"no bench\.json"):
        load_evaluation(tmp_path)


def test_transfer_is_judged_on_the_other_model(folder: Path) -> None:
    report, _ = write_report(folder, transfer=folder)
    assert report.gates[-1].holds is True  # the judge sees no difference
    assert VerdictReport.from_evaluation(load_evaluation(folder)).gates[-1].holds is None


def test_the_line_of_fixed_rows_is_concave() -> None:
    assert _hull([(8, 30), (10, 31), (12, 34), (12, 33), (14, 33), (20, 36)]) == [(8, 30), (12, 34), (20, 36)]
    assert _hull([(8, 30), (20, 28)]) == [(8, 30)]
    assert _hull([]) == []


def test_figures_need_rows(folder: Path) -> None:
    assert len(draw_figures(load_evaluation(folder))) == 3
