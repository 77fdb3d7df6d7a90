"""Two runs side by side: what differs, and whether the difference is real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skipstone.errors import SpecError
from skipstone.evaluation.statistics import Direction, PairedComparison, compare_paired, holm
from skipstone.registry import suggest_spelling

from .record import RunRecord

NAMES = ("date", "command", "machine")  # differ between any two runs, and are shown last
LOWER = ("calls", "lpips", "latent", "seconds", "flicker", "fid", "error")  # metrics of which less is better
LEVEL = 0.05  # of all tests together


@dataclass(frozen=True)
class MetricComparison:
    """One metric of one row of A against one row of B, on the samples that both have.

    Args:
        row: Its label, or "A's row | B's row".
        metric: Its name.
        found: The paired comparison, A minus B.
        p: Holm's adjusted p-value over all metrics and rows of the comparison.
    """

    row: str
    metric: str
    found: PairedComparison
    p: float

    @property
    def is_real(self) -> bool:
        """Whether the adjusted p-value is below 0.05."""
        return self.p < LEVEL


def settings_that_differ(a: RunRecord, b: RunRecord) -> list[tuple[str, str, str]]:
    """(name, A's, B's) of parameters, tags and prompt versions that are not the same; "-" where one has none."""
    both = []
    for record in (a, b):
        prompts = {f"{one.context} prompts": f"{one.name} ({one.digest[:12]})" for one in record.prompts}
        both.append({**{k: str(v) for k, v in record.params.items()}, **record.tags, **prompts, "kind": record.kind})
    first, second = both
    names = [name for name in dict.fromkeys([*first, *second]) if first.get(name) != second.get(name)]
    ordered = sorted(names, key=lambda name: name in NAMES)
    return [(name, first.get(name, "-"), second.get(name, "-")) for name in ordered]


def compare_samples(
    a: RunRecord, b: RunRecord, row_a: str | None = None, row_b: str | None = None
) -> list[MetricComparison]:
    """Paired tests of every metric on the samples that both runs have.

    Without rows, every row that both runs have is compared with itself.

    Args:
        a, b: Runs that store samples (bench).
        row_a, row_b: Specs of rows to compare instead.

    Raises:
        SpecError: a run without samples, an unknown row, or no row or sample in common.
    """
    for name, record in (("A", a), ("B", b)):
        if not record.samples:
            raise SpecError(f"{name}, {record.name}, stores no samples: expected the --out of skipstone bench.")
    pairs = _pairs(a, b, row_a, row_b)
    found = []
    for first, second in pairs:
        row = first if first == second else f"{first} | {second}"
        for metric in sorted(a.samples[first].keys() & b.samples[second].keys()):
            x, y = a.samples[first][metric], b.samples[second][metric]
            if x.keys() & y.keys():
                better: Direction = "lower" if metric.startswith(LOWER) else "higher"
                found.append((row, metric, compare_paired(x, y, better)))
    if not found:
        raise SpecError("A and B have no sample in common: expected the same prompts and seeds.")
    adjusted = holm([one.p for _, _, one in found])
    return [MetricComparison(row, metric, one, p) for (row, metric, one), p in zip(found, adjusted, strict=True)]


def _pairs(a: RunRecord, b: RunRecord, row_a: str | None, row_b: str | None) -> Sequence[tuple[str, str]]:
    if row_a is not None or row_b is not None:
        return [(_find_row(a.samples, row_a or row_b or "", "A"), _find_row(b.samples, row_b or row_a or "", "B"))]
    shared = [row for row in a.samples if row in b.samples]
    if not shared:
        raise SpecError(
            "A and B have no row in common: name one of each with --row and --other-row. A has: "
            f"{', '.join(a.samples)}. B has: {', '.join(b.samples)}."
        )
    return [(row, row) for row in shared]


def _find_row(samples: Mapping[str, object], row: str, name: str) -> str:
    """The spec of a row, which may be given without its sampler."""
    found = [spec for spec in samples if spec == row or spec.partition(" @ ")[0] == row]
    if len(found) == 1:
        return found[0]
    if found:
        raise SpecError(f"{name} has several rows {row!r}: expected one of {', '.join(found)}.")
    guess = suggest_spelling(row, list(samples))
    raise SpecError(f"{name} has no row {row!r}.{guess} It has: {', '.join(samples)}.")
