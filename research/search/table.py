"""The table and the picture of `results.json`: `python -m research.search.table`."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from skipstone.evaluation.figures import OURS, PEERS
from skipstone.evaluation.markdown import format_table
from skipstone.evaluation.resampling import ConfidenceInterval, Statistic, mean, median, paired_bootstraps, quantile

HERE = Path(__file__).parent
DP, DEFAULT = "dynamic programming", "default"
COLOURS = (OURS[0], PEERS[0], OURS[1], OURS[2], OURS[3])
BAR = 1.0  # dB at the median by which a search is to lead the dynamic programming
HEAD = ("", "calls", "median", "p10", "median lead", "p10 lead", "mean lead", "each seed", "candidates", "leads")


def by_sample(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """PSNR of each sample under each seed of the search, by ids whose prompt is the sample."""
    return {f"{k}:{seed}": value for seed, row in enumerate(rows) for k, value in enumerate(row["psnr"])}


def over_seeds(statistic: Statistic, seeds: int) -> Statistic:
    """A statistic of the samples of each seed, and its mean over the seeds."""

    def of(values: Any) -> Any:
        return statistic(np.moveaxis(values.reshape(*values.shape[:-1], -1, seeds), -1, -2)).mean(axis=-1)

    return of


def statistics_of(seeds: int) -> list[Statistic]:
    """Median, p10 and mean."""
    return [over_seeds(one, seeds) for one in (median, quantile(0.1), mean)]


def leads(rows: Sequence[Mapping[str, Any]], grid: Mapping[str, Any]) -> list[ConfidenceInterval]:
    """Leads over the dynamic programming at the median, in p10 and in the mean, with intervals over samples."""
    return paired_bootstraps(by_sample(rows), by_sample([grid] * len(rows)), statistics_of(len(rows)))


def shown(found: ConfidenceInterval) -> str:
    """A lead and its interval."""
    return f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def line(label: str, rows: Sequence[Mapping[str, Any]], grid: Mapping[str, Any]) -> list[str]:
    """The cells of one way."""
    middle, low, _ = (
        statistic(np.array([row["psnr"] for row in rows]).T.ravel()) for statistic in statistics_of(len(rows))
    )
    cells = [
        label,
        f"{statistics.fmean(row['spent'] for row in rows):.1f}",
        f"{middle:.1f}",
        f"{low:.1f}",
    ]
    if label == DP:
        return [*cells, *[""] * 6]
    own = statistics.median(grid["psnr"])
    each = ", ".join(f"{statistics.median(row['psnr']) - own:+.1f}" for row in rows) if label != DEFAULT else ""
    tried = "/".join(str(sum(row["candidates"].values())) for row in rows) if label != DEFAULT else ""
    taken = f"{sum(row['replaces'] for row in rows)} of {len(rows)}" if label != DEFAULT else ""
    return [*cells, *map(shown, leads(rows, grid)), each, tried, taken]


def section(model: str, found: Mapping[str, Any], calls: int) -> tuple[list[str], list[tuple[str, ConfidenceInterval]]]:
    """The lines of one model and number of calls, and the median lead of each search."""
    rows = {row["label"]: row for row in found["rows"] if row["calls"] == calls}
    names = list(dict.fromkeys(one["label"] for one in found["searches"]))
    groups = {
        name: [one for one in found["searches"] if (one["label"], one["calls"]) == (name, calls)] for name in names
    }
    body = [line(name, [rows[name]], rows[DP]) for name in (DP, DEFAULT)]
    body += [line(name, group, rows[DP]) for name, group in groups.items()]
    charged = max(one["charged"] for group in groups.values() for one in group)
    lines = [f"## {model}, {calls} calls", "", *format_table([list(HEAD), *body], [":--", *["--:"] * 9]), ""]
    lines += [
        f"At most {charged:,.0f} calls were charged to a search. {found['references']}",
        "",
        *found_by(groups),
        "",
    ]
    return lines, [(name, leads(group, rows[DP])[0]) for name, group in groups.items()]


def found_by(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What each search found under each seed: values that differ from the dynamic programming's policy."""
    usual = {"path.times": "tuned", "path.early": 1.0, "path.late": 1.0, "path.shift": 0.0, "path.more_steps": 0}
    usual |= {"guidance_gate.below": 0.0}
    lines = []
    for name, rows in groups.items():
        said = [", ".join(f"{k}={v}" for k, v in row["values"].items() if usual.get(k) != v) for row in rows]
        lines.append(f"- {name}: {'; '.join(said)}")
    return lines


def exact(found: ConfidenceInterval) -> str:
    """A lead and its interval, to a hundredth: the bar must not be met by rounding."""
    return f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def verdict(found: Sequence[tuple[str, int, str, ConfidenceInterval]]) -> list[str]:
    """Whether the bar is met, for each model and number of calls."""
    lines = []
    for model, calls in dict.fromkeys((model, calls) for model, calls, *_ in found):
        own = [(name, lead) for m, c, name, lead in found if (m, c) == (model, calls)]
        good = [f"{name} ({exact(lead)})" for name, lead in own if lead.value >= BAR]
        best = max(own, key=lambda one: one[1].value)
        none = f"no search is {BAR:g} dB better; the best is {best[0]} ({exact(best[1])})"
        unsure = (
            "; the intervals include 0" if good and all(lead.low < 0 for _, lead in own if lead.value >= BAR) else ""
        )
        lines.append(f"- {model}, {calls} calls: {', '.join(good) + unsure if good else none}.")
    return lines


def table(found: Mapping[str, Any], source: str) -> str:
    """The whole table of a file of results, in Markdown."""
    body: list[str] = []
    all_leads: list[tuple[str, int, str, ConfidenceInterval]] = []
    for model, one in found.items():
        for calls in dict.fromkeys(row["calls"] for row in one["rows"]):
            lines, known = section(model, one, calls)
            body += lines
            all_leads += [(model, calls, name, lead) for name, lead in known]
    seeds = ", ".join(f"{model} {len({one['seed'] for one in each['searches']})}" for model, each in found.items())
    head = ["# Searches at equal calls", "", f"Made by `python -m research.search.table` of `{source}`.", ""]
    head += [f"Seeds of the searches: {seeds}.", ""]
    head += [f"Searches that lead the dynamic programming by {BAR:g} dB at the median (interval of 95 %):", ""]
    return "\n".join([*head, *verdict(all_leads), "", *body])


def plot(found: Mapping[str, Any]) -> Figure:
    """Best quality so far against calls charged: the mean of the seeds."""
    cases = [(model, calls) for model, one in found.items() for calls in dict.fromkeys(r["calls"] for r in one["rows"])]
    figure = Figure(figsize=(9.0, 3.0 * ((len(cases) + 1) // 2)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (model, calls) in zip(figure.subplots((len(cases) + 1) // 2, 2, squeeze=False).flat, cases, strict=False):
        own = [one for one in found[model]["searches"] if one["calls"] == calls]
        for k, name in enumerate(dict.fromkeys(one["label"] for one in own)):
            curves = [one["curve"] for one in own if one["label"] == name]
            places = sorted({charged for curve in curves for charged, _ in curve})
            best = [statistics.fmean(best_at(curve, place) for curve in curves) for place in places]
            axes.step(places, best, where="post", color=COLOURS[k], label=name)
        axes.set_title(f"{model}, {calls} calls", fontsize=10)
        axes.set_xlabel("calls charged")
        axes.set_ylabel("best so far, dB (tuning)")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, loc="best")
    return figure


def best_at(curve: Sequence[Sequence[float]], place: float) -> float:
    """The best of a curve up to a number of calls; its first value before."""
    known = [best for charged, best in curve if charged <= place]
    return known[-1] if known else curve[0][1]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser("table", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=HERE / "results.json")
    given = parser.parse_args(arguments)
    found = json.loads(given.results.read_text(encoding="utf-8"))
    names = [given.results.name.replace("results", name) for name in ("table", "search")]
    table_file, plot_file = (given.results.with_name(name) for name in names)
    table_file.with_suffix(".md").write_text(table(found, given.results.name) + "\n", encoding="utf-8")
    plot(found).savefig(plot_file.with_suffix(".png"), dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()
