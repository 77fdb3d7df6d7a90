"""Best of N: generate a prompt under several seeds and take the picture of the highest score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from skipstone import registry
from skipstone.errors import MetricError, SpecError
from skipstone.evaluation.columns import Column
from skipstone.evaluation.pixels import as_read_by
from skipstone.evaluation.progress import ProgressCallback, no_progress
from skipstone.evaluation.references import EvaluationSample
from skipstone.evaluation.subject import SampleRequest, Subject
from skipstone.metrics import Metric, Sample

ScoreFunction: TypeAlias = Callable[[Any, str], float]  # pixels, prompt -> higher is better
JUDGE_NAME = "judge"
SEED_STRIDE = 1_000_000  # between the seeds of a sample, so that no sample's are another's


@dataclass(frozen=True, eq=False)
class BestOf:
    """The best of a sample.

    Args:
        sample: Which.
        seed: Of the best picture.
        calls: Of all that were generated: choosing is not free.
        scores: Of all of them, the sample's own seed first.
        pixels: The picture.
    """

    sample: str
    seed: int
    calls: float
    scores: tuple[float, ...]
    pixels: Any

    @property
    def score(self) -> float:
        """Of the best picture."""
        return max(self.scores)


def best_of(
    subject: Subject,
    eval_samples: Sequence[EvaluationSample],
    column: Column,
    score: ScoreFunction,
    n: int = 8,
    batch: int = 8,
    on_progress: ProgressCallback = no_progress,
) -> list[BestOf]:
    """Each sample's best of n seeds, its own among them, by a score; of equals the first.

    With n=8 on 'fixed @ ddim / 20' it is the random search that adaptive methods have to beat: 160 calls a picture,
    and as many decoded pictures and scores, which are no calls and not counted.

    Args:
        subject: The model.
        eval_samples: Prompts and seeds.
        column: How each picture is generated.
        score: What is best; see `make_scorer`.
        n: Pictures of each sample, >= 1. 1 is the sample itself.
        batch: Runs of one batch, >= 1.
        on_progress: Called with the progress.

    Raises:
        SpecError: fewer than one picture; a column that this model cannot run.
    """
    if n < 1:
        raise SpecError(f"Expected best of at least 1 picture, got {n}.")
    column = subject.resolve_column(column)
    subject.load([column])
    items = [
        SampleRequest(sample.prompt.text, sample.seed + k * SEED_STRIDE) for sample in eval_samples for k in range(n)
    ]
    calls, scores, best = _score_all(subject, items, column, score, n, batch, on_progress)
    found = []
    for s, eval_sample in enumerate(eval_samples):
        own = tuple(scores[s * n : (s + 1) * n])
        seed = eval_sample.seed + own.index(max(own)) * SEED_STRIDE
        found.append(BestOf(eval_sample.id, seed, sum(calls[s * n : (s + 1) * n]), own, best[s]))
    return found


def _score_all(
    subject: Subject,
    items: Sequence[SampleRequest],
    column: Column,
    score: ScoreFunction,
    n: int,
    batch: int,
    on_progress: ProgressCallback,
) -> tuple[list[float], list[float], list[Any]]:
    """Calls and score of each item, and of every n items the picture of the best; others are dropped at once."""
    calls: list[float] = []
    scores: list[float] = []
    best: dict[int, tuple[float, Any]] = {}
    for first in range(0, len(items), batch):
        on_progress("Drawing candidates", first, len(items))
        some = items[first : first + batch]
        generated, _ = subject.draw(some, column)
        for k, (item, one, pixels) in enumerate(zip(some, generated, subject.pictures(generated), strict=True), first):
            value = score(pixels, item.prompt)
            calls.append(one.calls)
            scores.append(value)
            if k // n not in best or value > best[k // n][0]:
                best[k // n] = value, pixels
    return calls, scores, [best[s][1] for s in range(len(items) // n)]


def make_scorer(subject: Subject, name: str = JUDGE_NAME) -> ScoreFunction:
    """The model's own judge, or a metric that looks at picture and prompt alone: "clip_score".

    Raises:
        UnknownNameError: no such metric.
        MetricError: it cannot be taken here; the message says what is missing.
    """
    if name == JUDGE_NAME:
        judge = subject.judge
        if judge is None:
            raise MetricError(
                f"{subject.name} has no judge of its own: choose a metric of picture and prompt, such as clip_score."
            )
        return judge
    variants = registry.find_class("metric", name).variants()  # type: ignore[attr-defined]  # a Measure
    usable = next((one for one in variants if not one.missing()), None)
    if usable is None:
        raise MetricError(f"{name} cannot be taken here: {variants[0].missing()}")
    if not isinstance(usable, Metric) or usable.better == "lower":
        raise MetricError(f"{name} is no score of one picture and its prompt: choose judge or clip_score.")
    metric = usable
    return lambda pixels, prompt: metric.measure(as_read_by(metric, Sample(pixels, prompt)))
