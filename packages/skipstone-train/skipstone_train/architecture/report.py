"""The result of a search: children as model folders, the table, the front and the importance of each choice."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skipstone import __version__
from skipstone.cli.files import write_atomically
from skipstone.policies.seen_prompts import SEEN_FILE, write_seen

from .halving import Evaluation, Halving, Job, build_study
from .memory_check import measured_memory
from .objectives import FIGURES
from .search import ArchitectureSearch, SearchResult

FRONT, REPORT, RESULT = "front", "report.md", "search.json"
FRONT_PLOT, IMPORTANCE_PLOT = "front.png", "importance.png"
MIN_FOR_IMPORTANCE = 8  # shapes


@dataclass(frozen=True)
class Child:
    """A child of the front, written as a model.

    Args:
        evaluation: Its figures.
        folder: What commands take as `--model`.
        megabytes: That a process of its own took for it.
    """

    evaluation: Evaluation
    folder: Path
    megabytes: float


def write_result(search: ArchitectureSearch, result: SearchResult, command: Sequence[str]) -> list[Child]:
    """Write the children of the front and the report; returns the children, best first.

    Args:
        search: That was run.
        result: What it found.
        command: As typed, for the report.
    """
    front = search.halving.ranked(result.front)
    folders = [_write_model(search, result, one) for one in front]
    children = [Child(*one) for one in zip(front, folders, measured_memory(folders), strict=True)]
    for child in children:
        card = _card(search, child)
        write_atomically({child.folder / "README.md": card.encode(), child.folder / SEEN_FILE: _seen(search)})
    importance = importance_of(search.halving, result.found)
    text = _report(search, result, children, importance, command)
    files = {
        search.folder / REPORT: text.encode(),
        search.folder / RESULT: (json.dumps(to_json(search, children, importance), indent=1) + "\n").encode(),
        search.folder / SEEN_FILE: _seen(search),
        search.folder / FRONT_PLOT: plot_front(search.halving, result.found, children),
    }
    if importance:
        files[search.folder / IMPORTANCE_PLOT] = plot_importance(importance)
    write_atomically(files)
    return children


def _seen(search: ArchitectureSearch) -> bytes:
    return write_seen([*search.texts, *search.checks])


def _write_model(search: ArchitectureSearch, result: SearchResult, one: Evaluation) -> Path:
    """The folder of a child with its trained weights."""
    folder = search.folder / FRONT / one.candidate.name
    child = result.evaluator.trained(Job(one.candidate, one.rung))
    search.model.with_denoiser(child).save(folder)
    return folder


def _card(search: ArchitectureSearch, child: Child) -> str:
    one = child.evaluation
    steps = search.halving.rungs[one.rung]
    shape = ", ".join(f"{part} {value}" for part, value in one.candidate.choices)
    figures = "\n".join(f"- {name}: {format_figure(name, value)}" for name, value in one.values.items())
    model = shlex.quote(str(child.folder))
    return f"""# A child of {search.model.name}

Found by `skipstone search`: {shape}; everything else is its teacher's. It has the teacher's weights as far as they
fit, and learnt its outputs in {steps} steps of {search.settings.batch} rows.

{figures}
- speed: {one.details["speed"]:.2f} times its teacher's, of a network call of one guided sample
- memory: {one.details["megabytes"]:.1f} MB estimated, {child.megabytes:.1f} MB measured in a process of its own
- parameters: {one.details["parameters"]:,}

    skipstone compare "a cat" --model {model} -p balanced

`{SEEN_FILE}` has the sums of the prompts that it was trained or chosen on.
"""


def format_figure(name: str, value: float) -> str:
    """A figure with its unit."""
    shown = f"{value:.4f}" if name == "error" else f"{value:.1f}" if name == "judge" else f"{value:.2f}"
    return f"{shown} {FIGURES[name].unit}".rstrip()


def importance_of(halving: Halving, found: Sequence[Evaluation]) -> dict[str, dict[str, float]]:
    """Figure -> part -> its share of the variance over the shapes of the first rung (fANOVA, Hutter et al. 2014)."""
    first = [one for one in found if one.rung == 0 and one.values]
    moving = [name for name, values in halving.space.parts.items() if len(values) > 1]
    if len(first) < MIN_FOR_IMPORTANCE or not moving:
        return {}
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    study, shares = build_study(halving, first, halving.seed), {}
    for k, name in enumerate(halving.objectives.names):
        if len({trial.values[k] for trial in study.trials}) > 1:
            evaluator = FanovaImportanceEvaluator(seed=halving.seed)
            target = _Value(k)
            shares[name] = dict(get_param_importances(study, evaluator=evaluator, params=moving, target=target))
    return shares


@dataclass(frozen=True)
class _Value:
    """Reads one figure of a trial."""

    index: int

    def __call__(self, trial: Any) -> float:
        return float(trial.values[self.index])


def to_json(search: ArchitectureSearch, children: Sequence[Child], importance: Mapping[str, Any]) -> dict[str, Any]:
    """The result for programs."""
    return {
        "version": __version__,
        "model": search.model.name,
        "objective": list(search.halving.objectives.names),
        "space": {name: list(values) for name, values in search.halving.space.parts.items()},
        "settings": asdict(search.settings),
        "front": [
            {
                "folder": str(child.folder),
                "choices": dict(child.evaluation.candidate.choices),
                "values": dict(child.evaluation.values),
                "details": {**child.evaluation.details, "megabytes_measured": child.megabytes},
            }
            for child in children
        ],
        "importance": importance,
    }


# -- The report -------------------------------------------------------------------------------------


def _report(
    search: ArchitectureSearch,
    result: SearchResult,
    children: Sequence[Child],
    importance: Mapping[str, Mapping[str, float]],
    command: Sequence[str],
) -> str:
    halving, found = search.halving, result.found
    by_rung = [sum(one.rung == rung for one in found) for rung in range(len(halving.rungs))]
    trained = "; ".join(
        f"{count} to {steps} steps" for count, steps in zip(by_rung, halving.rungs, strict=True) if count
    )
    failed = [one for one in found if one.failure]
    lines = [
        f"# Children of {search.model.name}",
        "",
        f"Made by `{shlex.join(command)}` in {result.seconds / 60:.1f} minutes.",
        "",
        f"The space has {halving.space.size} shapes: "
        + "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in halving.space.parts.items())
        + f". Children trained: {trained}.",
        "",
        *(f"- {name}: {FIGURES[name].meaning}" for name in halving.objectives.names),
        "",
        f"Milliseconds are those of the teacher ({result.evaluator.teacher_milliseconds:.2f}) divided by the child's "
        "speed, the median of calls in turns. Figures that differ by no more than their noise count as equal.",
        "",
        "## The front",
        "",
        *_table(halving, [child.evaluation for child in children]),
        "",
        f"![The front]({FRONT_PLOT})",
        "",
        *_importance_lines(importance),
        "## All children",
        "",
        *_table(halving, halving.ranked(found)),
        "",
        *(f"- {one.candidate.name}, {halving.rungs[one.rung]} steps, failed: {one.failure}" for one in failed),
        "",
        f"`{SEEN_FILE}` has the sums of the {len(set(search.texts) | set(search.checks))} prompts that children were "
        "trained or chosen on: figures on other prompts are what counts.",
    ]
    return "\n".join(lines) + "\n"


def _table(halving: Halving, found: Sequence[Evaluation]) -> list[str]:
    names = halving.objectives.names
    head = ["child", "steps", *names, "speed", "parameters"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    for one in found:
        figures = [format_figure(name, one.values[name]) for name in names]
        costs = [f"{one.details['speed']:.2f} x", f"{one.details['parameters']:,}"] if one.details else ["", ""]
        lines.append(f"| {' | '.join([one.candidate.name, str(halving.rungs[one.rung]), *figures, *costs])} |")
    return lines


def _importance_lines(importance: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not importance:
        return [f"The importance of each choice needs at least {MIN_FOR_IMPORTANCE} shapes.", ""]
    parts = list(next(iter(importance.values())))
    parts = sorted({part for shares in importance.values() for part in shares}, key=parts.index)
    lines = ["## Importance of each choice", "", "Share of the variance on the first rung (fANOVA).", ""]
    lines += [f"| figure | {' | '.join(parts)} |", f"|---|{'--:|' * len(parts)}"]
    for name, shares in importance.items():
        lines.append(f"| {name} | {' | '.join(f'{shares.get(part, 0):.0%}' for part in parts)} |")
    return [*lines, "", f"![Importance]({IMPORTANCE_PLOT})", ""]


# -- Plots ------------------------------------------------------------------------------------------


def plot_front(halving: Halving, found: Sequence[Evaluation], children: Sequence[Child]) -> bytes:
    """PNG: the first figure over each of the others; those of the front in colour, with their names."""
    from matplotlib.figure import Figure

    from skipstone.evaluation.figures import INK, OURS, PAPER, QUIET, RULE, figure_to_png

    names = halving.objectives.names
    others = names[1:] or names
    figure = Figure(figsize=(5.2 * len(others), 4.2), dpi=120, facecolor=PAPER, layout="constrained")
    chosen = {child.evaluation.candidate for child in children}
    for axis, name in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        for rung in range(len(halving.rungs)):
            here = [one for one in found if one.rung == rung and one.values and one.candidate not in chosen]
            xs, ys = [one.values[name] for one in here], [one.values[names[0]] for one in here]
            axis.plot(xs, ys, ".", color=QUIET, alpha=0.3 + 0.5 * rung / len(halving.rungs), ms=4 + 2 * rung)
        for child in children:
            x, y = child.evaluation.values[name], child.evaluation.values[names[0]]
            axis.plot([x], [y], "o", color=OURS[0], ms=6)
            axis.annotate(child.evaluation.candidate.name, (x, y), fontsize=6, color=INK, xytext=(4, 4),
                          textcoords="offset points")  # fmt: skip
        axis.set_xlabel(f"{name}, {FIGURES[name].unit}".rstrip(", "), fontsize=9.5, color=QUIET)
        axis.set_title(f"{names[0]} over {name}", loc="left", fontsize=10.5, color=INK)
        axis.grid(True, color=RULE, lw=0.6)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0, labelsize=9, labelcolor=QUIET)
    return figure_to_png(figure)


def plot_importance(importance: Mapping[str, Mapping[str, float]]) -> bytes:
    """PNG: bars of each choice's share, by figure."""
    from matplotlib.figure import Figure

    from skipstone.evaluation.figures import INK, OURS, PAPER, QUIET, RULE, figure_to_png

    figure = Figure(figsize=(4.2 * len(importance), 3), dpi=120, facecolor=PAPER, layout="constrained")
    for axis, (name, shares) in zip(figure.subplots(1, len(importance), squeeze=False)[0], importance.items(),
                                    strict=True):  # fmt: skip
        parts = sorted(shares, key=lambda part: shares[part])
        axis.barh(parts, [shares[part] for part in parts], color=OURS[0], height=0.6)
        axis.set_title(f"what {name} depends on", loc="left", fontsize=10.5, color=INK)
        axis.set_xlim(0, 1)
        axis.grid(True, axis="x", color=RULE, lw=0.6)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0, labelsize=9, labelcolor=QUIET)
    return figure_to_png(figure)
