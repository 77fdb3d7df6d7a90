"""Many calibrations on the scores that `calibration.py draw` has made, by the code that users run.

The 324 prompts are the population: its truth is known exactly. Each calibration draws its prompts from it at random,
one by one, as future prompts would come; with the prompts that are left over after a split as the truth, its own noise
would decide what is called broken. A second table splits without replacement all the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from calibration import COLUMNS, CONVERGED_SCORES, FULL, RUNGS, SCORES, SUBJECT
from skipstone.calibration.cache import SampleScore
from skipstone.calibration.control import choose_setting
from skipstone.calibration.procedure import Calibration, CalibrationOptions
from skipstone.calibration.prompt_split import SampleSplit
from skipstone.calibration.scores import PictureMeasure
from skipstone.calibration.search import PassCriterion, search
from skipstone.calibration.target import Target
from skipstone.evaluation.columns import Column
from skipstone.evaluation.json_lines import read_lines
from skipstone.evaluation.prompts import Prompt
from skipstone.evaluation.references import EvaluationSample

HERE = Path(__file__).parent
SEARCH, TEST, SPLITS, CONFIDENCE = 100, 200, 100, 0.9
CALLS, PSNR, SSIM, NEARNESS = range(4)
PLACES = {column.spec: k for k, column in enumerate(COLUMNS.values())}


@dataclass(frozen=True)
class Question:
    """A target, and what is measured for it.

    Args:
        target: As users spell it.
        measure: Column of the table.
        groups: Whether it is promised to every category.
    """

    target: str
    measure: int
    groups: bool = False

    @property
    def label(self) -> str:
        """In tables."""
        to = ", to the converged run" if self.measure == NEARNESS else ", each category" if self.groups else ""
        return f"`{self.target}`{to}"


QUESTIONS = (
    Question("psnr >= 30 @ 90%", PSNR),
    Question("psnr >= 40 @ 90%", PSNR),
    Question("psnr >= 30 @ 95%", PSNR),
    Question("ssim >= 0.95 @ 95%", SSIM),
    Question("ssim >= 0.99 @ 90%", SSIM),
    Question("psnr >= 45 @ mean", PSNR),
    Question("ssim >= 0.98 @ mean", SSIM),
    Question("psnr >= 40 @ 90%", NEARNESS),
    Question("psnr >= 40 @ 90%", PSNR, groups=True),
)


@dataclass(frozen=True, eq=False)
class Population:
    """All that was drawn: (setting, prompt, measure), and the category of each prompt."""

    table: Any
    categories: Sequence[str]

    @classmethod
    def read(cls) -> Population:
        """From the committed files; nearness to the converged run only where that was drawn."""
        lines = list(read_lines(SCORES))
        near = {line["prompt"]: line["rungs"] for line in read_lines(CONVERGED_SCORES)}
        rows = [
            [[*line["rungs"][name], near.get(line["prompt"], {}).get(name, np.nan)] for line in lines]
            for name in COLUMNS
        ]
        return cls(np.array(rows, float), [line["category"] for line in lines])

    def __len__(self) -> int:
        return len(self.categories)


@dataclass
class PopulationScores:
    """What `CachedScores` is to a calibration, out of the population."""

    population: Population
    measure: int
    spent: float = 0.0
    seen_ids: dict[str, set[str]] = field(default_factory=dict)

    def of(self, column: Column, eval_samples: Sequence[EvaluationSample], part: str = "search") -> list[SampleScore]:
        """Scores, and their calls counted once."""
        looked = self.seen_ids.setdefault(column.spec, set())
        found = self._scores(column, eval_samples)
        self.spent += sum(
            one.calls for one, eval_sample in zip(found, eval_samples, strict=True) if eval_sample.id not in looked
        )
        looked |= {eval_sample.id for eval_sample in eval_samples}
        return found

    def known(self, column: Column, eval_samples: Sequence[EvaluationSample]) -> list[SampleScore | None]:
        """Those that were looked at."""
        looked = self.seen_ids.get(column.spec, set())
        found = self._scores(column, eval_samples)
        return [one if eval_sample.id in looked else None for one, eval_sample in zip(found, eval_samples, strict=True)]

    def _scores(self, column: Column, eval_samples: Sequence[EvaluationSample]) -> list[SampleScore]:
        rows = self.population.table[PLACES[column.spec], [eval_sample.seed for eval_sample in eval_samples]]
        return [SampleScore(value, calls) for value, calls in rows[:, [self.measure, CALLS]].tolist()]


@dataclass(frozen=True)
class CalibrationOutcome:
    """One calibration.

    Args:
        calls: Of what was chosen, in the population; None where nothing was.
        risk: Its true one.
        spent: Calls of the calibration.
        naive: True risk of what the naive rule chooses.
        left: Share that meets the target among the prompts that are left over.
    """

    calls: float | None
    risk: float
    spent: float
    naive: float | None
    left: float | None = None


def run_calibration(
    population: Population, question: Question, indices: Any, searching: int, left: Any = None
) -> CalibrationOutcome:
    """A calibration on these prompts, the first of which search."""
    target = Target.parse(question.target)
    eval_samples = tuple(
        EvaluationSample(Prompt(str(k), str(i), population.categories[i]), int(i)) for k, i in enumerate(indices)
    )
    by = "category" if question.groups else ""
    samples = SampleSplit(eval_samples[:searching], eval_samples[searching:], {}, 0, by)
    run = Calibration(
        SUBJECT,
        target,
        CONFIDENCE,
        CalibrationOptions(),
        samples,
        SUBJECT.default_sampler,
        FULL,
        RUNGS,
        PictureMeasure("", len),
    )  # type: ignore[arg-type]
    table = PopulationScores(population, question.measure)
    bar = PassCriterion(target, 1 - CONFIDENCE, run._smallest)
    order = search(RUNGS, samples.search, table, bar, samples.groups(samples.search))
    tested = run._test(order, table)  # type: ignore[arg-type]  # a table in place of what draws
    values = [[one.value for one in found] for _, found in tested]
    costs = [statistics.fmean(one.calls for one in found) for _, found in tested]
    found = choose_setting(target, values, costs, 1 - CONFIDENCE, samples.groups(samples.test))
    spent = table.spent + len(eval_samples) * FULL.steps
    naive = _naive(population, question, target, indices)
    if found.index is None:
        return CalibrationOutcome(None, 0.0, spent, naive)
    rung = PLACES[tested[found.index][0].column.spec]
    kept = None if left is None else 1 - risk_of(population, question, target, rung, left)
    return CalibrationOutcome(
        population.table[rung, :, CALLS].mean(), risk_of(population, question, target, rung), spent, naive, kept
    )


def _naive(population: Population, question: Question, target: Target, indices: Any) -> float | None:
    """True risk of the fastest setting whose own average on all of these prompts meets the target."""
    rates = [risk_of(population, question, target, rung, indices) for rung in range(len(COLUMNS))]
    good = [rung for rung, rate in enumerate(rates) if rate <= target.risk]
    return risk_of(population, question, target, max(good)) if good else None  # rungs go from slow to fast


def risk_of(population: Population, question: Question, target: Target, rung: int, some: Any = None) -> float:
    """Mean loss of a setting in the population, or on some of it; of its worst group where there are groups."""
    some = np.arange(len(population)) if some is None else np.asarray(some)
    losses = np.array([target.loss(v) for v in population.table[rung, some, question.measure]])
    if not question.groups:
        return float(losses.mean())
    names = np.array(population.categories)[some]
    return max(float(losses[names == name].mean()) for name in set(names))


def best(population: Population, question: Question) -> float:
    """Calls of the fastest setting that keeps the promise in truth: what hindsight would choose."""
    target = Target.parse(question.target)
    good = [r for r in range(len(COLUMNS)) if risk_of(population, question, target, r) <= target.risk]
    return min((float(population.table[r, :, CALLS].mean()) for r in good), default=float("nan"))


def row(population: Population, question: Question, splits: int = SPLITS) -> str:
    """One line of the main table."""
    risk, hindsight = Target.parse(question.target).risk, best(population, question)
    found = [
        run_calibration(
            population, question, np.random.default_rng(s).integers(0, len(population), SEARCH + TEST), SEARCH
        )
        for s in range(splits)
    ]
    broken = sum(o.risk > risk + 1e-12 for o in found)
    naive = sum(o.naive is not None and o.naive > risk + 1e-12 for o in found)
    calls = [o.calls for o in found if o.calls is not None]
    if not calls:
        return f"| {question.label} | never promised | | | | | | {_share(naive, splits)} |"
    over = [c / hindsight - 1 for c in calls]
    spent = statistics.fmean(o.spent for o in found)
    mean = statistics.fmean(calls)
    kept = _share(splits - broken, splits)
    return (
        f"| {question.label} | {kept} | {splits - len(calls)} | {mean:.1f} ({1 - mean / 50:.0%}) "
        f"| {hindsight:.1f} | {statistics.median(over):+.0%} ({np.quantile(over, 0.9):+.0%}) | {spent:,.0f} "
        f"({spent / (50 - mean):,.0f}) | {_share(splits - naive, splits)} |"
    )


def held_out(population: Population, question: Question, splits: int = SPLITS) -> str:
    """One line of the second table: split without replacement, half of the prompts left over."""
    half = len(population) // 2
    shares = []
    for s in range(splits):
        order = np.random.default_rng(s).permutation(len(population))
        found = run_calibration(population, question, order[:half], half // 3, order[half:])
        shares += [found.left] if found.left is not None else []
    if not shares:
        return f"| {question.label} | never promised | | |"
    bound = 1 - Target.parse(question.target).risk
    missed = sum(share < bound - 1e-12 for share in shares) / len(shares)
    return f"| {question.label} | {len(shares)} | {statistics.fmean(shares):.1%} | {missed:.1%} |"


def _share(count: int, n: int) -> str:
    found = binomtest(count, n).proportion_ci(0.95, method="exact")
    return f"{count / n:.1%} ({found.low:.1%} to {found.high:.1%})"


def settings(population: Population) -> list[str]:
    """The population itself."""
    lines = [
        "| setting | calls | psnr, worst tenth | median | ssim, worst tenth | psnr to converged, worst tenth |",
        "|---|" + 5 * "--:|",
    ]
    for r, name in enumerate(COLUMNS):
        calls, close, ssim, near = population.table[r].T
        tenth: Callable[[Any], float] = lambda a: float(np.quantile(a, 0.1))  # noqa: E731
        to = f"{tenth(near):.1f}" if np.isfinite(near).all() else ""
        lines.append(
            f"| {name} | {calls.mean():.1f} | {tenth(close):.1f} | {np.median(close):.1f} | {tenth(ssim):.3f} | {to} |"
        )
    return lines


def main() -> None:
    """Write calibration.md and calibration.png."""
    population = Population.read()
    converged = bool(np.isfinite(population.table[..., NEARNESS]).all())
    asked = [q for q in QUESTIONS if converged or q.measure != NEARNESS]
    agreement = [line["agreement"] for line in read_lines(CONVERGED_SCORES) if "agreement" in line]
    text = TEXT.format(
        prompts=len(population),
        splits=SPLITS,
        search=SEARCH,
        test=TEST,
        rows="\n".join(row(population, q) for q in asked),
        half=len(population) // 2,
        left="\n".join(held_out(population, q) for q in asked if "mean" not in q.target),
        settings="\n".join(settings(population)),
        agreement=AGREEMENT.format(median=statistics.median(agreement), worst=min(agreement), n=len(agreement))
        if agreement
        else "",
    )
    (HERE / "calibration.md").write_text(text, encoding="utf-8")
    print(text)


AGREEMENT = (
    "The converged run is DPM-Solver++(2M) with 100 steps; UniPC with 70 agrees with it to {median:.1f} dB at the "
    "median and {worst:.1f} dB at the worst of {n} prompts."
)
TEXT = """# Calibration on Pebble: are promises kept?

    python research/calibration/calibration.py draw FOLDER
    python research/calibration/calibration.py converged FOLDER
    python research/calibration/calibration.py

Every rung of the ladder of `stride` (on adams, trailing, 50 steps) was drawn once on {prompts} test prompts of Pebble,
one seed each, and compared with the full run (unipc, trailing, 50 steps). {agreement}

## Promises

The {prompts} prompts are the population, whose truth is known exactly. {splits} calibrations each draw {search} prompts
for the search and {test} for the final test from it at random, with replacement, as future prompts would come;
confidence 90 %.

- *Kept*: the chosen setting meets the target in the population; a calibration that promises nothing breaks nothing.
  95 % interval. Bar: the upper end is not below 90 %.
- *No promise*: calibrations in which no setting was accepted.
- *Over best*: calls of the chosen setting over those of the fastest one that keeps the promise in truth, at the median
  and at the unlucky tenth. Bar: 15 % at the median for a target of 90 %.
- *Spent*: calls of a whole calibration with nothing in the cache, full runs included; and after how many pictures they
  are earned back.
- *Naive*: how often the promise is kept by the fastest setting whose average on the same 300 prompts meets the target.

| target | kept | no promise | calls (saved) | best in hindsight | over best | spent (pictures) | naive kept |
|---|--:|--:|--:|--:|--:|--:|--:|
{rows}

## The same with prompts left over

Split without replacement: {half} prompts calibrate (a third of them search), the others are the future. Their own share
that meets the target is a sample of as many prompts only, so that a share below the target is not yet a broken promise.

| target | promises | meet it among those left over | below the target there |
|---|--:|--:|--:|
{left}

## The population

{settings}
"""


if __name__ == "__main__":
    main()
