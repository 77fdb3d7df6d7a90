"""Figures of an evaluation: closeness against calls, calls against complexity, and the gap."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from skipstone.evaluation.figures import INK, OURS, PAPER, PEERS, QUIET, RULE
from skipstone.evaluation.resampling import mean_by_prompt
from skipstone_train.agents.complexity import prompt_complexities

from .loaded_evaluation import LoadedEvaluation
from .scores import ScoreRow, Scores, mean_over_prompts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND_STYLES = {
    "fixed": (INK, "o", "fixed"), "full": (INK, "D", "full run"), "rule": (PEERS[0], "s", "rules"),
    "agent": (OURS[0], "^", "agents"), "ceiling": (OURS[2], "P", "ceiling"), "oracle": (OURS[1], "*", "oracle"),
}  # fmt: skip


def draw_figures(found: LoadedEvaluation) -> dict[str, Figure]:
    """Title -> figure, of all that these scores can show."""
    every: dict[str, Callable[[Scores], Figure | None]] = {
        "Closeness to the converged picture against calls": plot_closeness,
        "Calls by what a prompt asks for": plot_calls_by_complexity,
        "Utility: best fixed schedule, agent, and those that know more": plot_utilities,
    }
    return {title: figure for title, draw in every.items() if (figure := draw(found.scores)) is not None}


def plot_closeness(scores: Scores) -> Figure | None:
    """Mean PSNR of every row at its mean calls; the line is the best that fixed rows and mixtures of two reach."""
    points = [(row, row.calls, mean_over_prompts(row.values("psnr"))) for row in scores.rows if row.values("psnr")]
    if len(points) < 2:
        return None
    figure, axis = _make_axes()
    hull = _hull([(c, q) for row, c, q in points if row.kind in ("fixed", "full")])
    if hull:
        axis.plot(*zip(*hull, strict=True), "-", color=INK, lw=1.4, zorder=2)
    for kind, (colour, marker, label) in KIND_STYLES.items():
        own = [(c, q) for row, c, q in points if row.kind == kind]
        if own:
            axis.plot(*zip(*own, strict=True), marker, color=colour, mec=PAPER, mew=0.6, ms=7, label=label, zorder=3)
    axis.set_xlabel("mean calls", fontsize=9.5, color=QUIET)
    axis.set_ylabel("mean PSNR, dB", fontsize=9.5, color=QUIET)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    return figure


def _hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The upper concave hull up to its highest point, from left to right."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points):
        while len(kept) > 1 and (y - kept[-2][1]) * (kept[-1][0] - kept[-2][0]) >= (kept[-1][1] - kept[-2][1]) * (
            x - kept[-2][0]
        ):
            kept.pop()
        if not kept or x > kept[-1][0]:
            kept.append((x, y))
        else:
            kept[-1] = (x, max(y, kept[-1][1]))
    top = max(range(len(kept)), key=lambda k: kept[k][1], default=-1)
    return kept[: top + 1]


def plot_calls_by_complexity(scores: Scores) -> Figure | None:
    """Calls of every prompt over its complexity, with the mean of each level."""
    import numpy as np

    calls = mean_by_prompt(scores.agent.values("calls"))
    texts = {sample.rpartition(":")[0]: text for sample, text in scores.prompts.items()}
    known = [prompt for prompt in calls if prompt in texts]
    if len(known) < 2:
        return None
    levels = prompt_complexities([texts[prompt] for prompt in known])
    x, y = np.array(levels.values), np.array([calls[prompt] for prompt in known])
    figure, axis = _make_axes()
    jitter = np.random.default_rng(0).uniform(-0.18, 0.18, len(x))
    axis.plot(x + jitter, y, "o", color=OURS[0], alpha=0.35, ms=5, mec="none")
    for level in sorted(set(levels.values)):
        axis.plot([level - 0.28, level + 0.28], [y[x == level].mean()] * 2, "-", color=INK, lw=2.2)
    axis.set_xlabel(levels.unit, fontsize=9.5, color=QUIET)
    axis.set_ylabel("calls", fontsize=9.5, color=QUIET)
    return figure


def plot_utilities(scores: Scores) -> Figure | None:
    """Mean utilities on the samples that all rows have; the dots of the agent are its trainings."""
    beyond = [*scores.of("ceiling"), *scores.of("oracle")]
    fixed = scores.of("fixed")
    if not fixed:
        return None
    shared = set(scores.agent.samples).intersection(*(row.samples for row in (*fixed, *beyond)))

    def mean(row: ScoreRow) -> float:
        own = row.utilities(scores.utility)
        return mean_over_prompts({s: own[s] for s in shared if s in own})

    best = max(fixed, key=mean)
    bars = [("best fixed schedule", best, INK), ("agent", scores.agent, OURS[0])]
    bars += [(row.kind, row, KIND_STYLES[row.kind][0]) for row in beyond]
    figure, axis = _make_axes(height=0.7 + 0.55 * len(bars))
    for k, (label, row, colour) in enumerate(reversed(bars)):
        axis.plot([mean(row)], [k], "D", color=colour, ms=8)
        axis.annotate(f"{mean(row):.2f}", (mean(row), k), (0, 9), textcoords="offset points", ha="center", fontsize=9)
        if label == "agent":
            axis.plot([mean(r) for r in scores.trainings], [k] * len(scores.trainings), "o", color=colour, alpha=0.4)
    axis.set_yticks(range(len(bars)), [label for label, *_ in reversed(bars)])
    axis.set_ylim(-0.6, len(bars) - 0.3)
    axis.set_xlabel(f"mean utility, dB, at {scores.utility.price:g} dB a call", fontsize=9.5, color=QUIET)
    return figure


def _make_axes(height: float = 4.4) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, height), dpi=150, facecolor=PAPER, layout="constrained")
    axis = figure.subplots()
    axis.grid(True, color=RULE, lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelsize=9, labelcolor=QUIET)
    axis.spines[:].set_visible(False)
    axis.set_facecolor("none")
    return figure, axis
