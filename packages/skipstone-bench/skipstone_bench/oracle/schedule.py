"""The oracle schedule: the best of many schedules that were really run, for each sample by itself."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from skipstone.errors import SpecError
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.files import put
from skipstone.evaluation.fingerprint import fingerprint
from skipstone.evaluation.json_lines import plain
from skipstone.evaluation.progress import Tell, silent
from skipstone.evaluation.references import Shot
from skipstone.evaluation.subject import Subject
from skipstone.tuning.errors import local_errors
from skipstone.tuning.grids import Fine
from skipstone.tuning.run_cache import Kept
from skipstone.tuning.runs import FINE, Draws
from skipstone.tuning.search import FEWEST, FINEST, FORECASTS, LONGEST
from skipstone.tuning.shortest import shortest_of

from .local_search import climbed
from .trials import Trial, Trials
from .utility import Choice, Tried, Utility, best

CALLS = (6, 8, 10, 12, 14, 16, 20, 24)
RESULTS = "oracle.jsonl"
REFERENCE = "reference"


@dataclass(frozen=True)
class Ladder:
    """Which schedules are tried on every sample.

    Args:
        calls: Of a sample's own grids, each at least 4 and at most half of `fine`; none tries guides alone.
        guides: Columns that are tried on every sample: 'path(times="...")', 'stride(tol=0.01)', 'fixed @ unipc / 20'.
        forecasts: Of `adams` on own grids: "pair", "x0", or both.
        fine: Steps of the run that a sample's errors are computed from, >= 8.
        gain: (angle, gain) pairs: how much of an error made there is left, as `Found.gain` of a search says; own grids
            are found with it and without. None finds them without.
        reference: The converged run as a column; "" takes the fine run.
        sweeps: Of moving and dropping single places of a sample's best grid by what they really do, >= 0. These are
            made for one utility, and cost some 3 n^2 calls of a grid of n.
        batch: Runs of one batch, >= 1.

    Raises:
        SpecError: a setting out of range.
    """

    calls: Sequence[int] = CALLS
    guides: Sequence[str] = ()
    forecasts: Sequence[str] = FORECASTS
    fine: int = 200
    gain: Sequence[tuple[float, float]] | None = None
    reference: str = ""
    sweeps: int = 0
    batch: int = 8

    def __post_init__(self) -> None:
        for name, least in (("fine", FINEST), ("sweeps", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise SpecError(f"Expected {name} >= {least}, got {getattr(self, name)}.")
        if wrong := [n for n in self.calls if not FEWEST <= n <= self.fine // 2]:
            raise SpecError(f"Expected calls between {FEWEST} and {self.fine // 2}, half of fine, got {wrong[0]}.")
        if not set(self.forecasts) <= set(FORECASTS):
            raise SpecError(f"Expected forecasts among {', '.join(FORECASTS)}, got {', '.join(self.forecasts)}.")
        if not self.guides and not (self.calls and self.forecasts):
            raise SpecError("Expected guides, or calls of own grids: there is nothing to try.")


@dataclass(frozen=True)
class Oracle:
    """A search for the best schedule of each sample; `tried` really runs them, once for all utilities.

    Args:
        subject: The model.
        shots: Prompts and seeds.
        kept: Where runs are kept; what is there is not made again.
        ladder: What is tried.
        tell: Of the progress.
    """

    subject: Subject
    shots: Sequence[Shot]
    kept: Kept
    ladder: Ladder = field(default_factory=Ladder)
    tell: Tell = silent

    @classmethod
    def open(
        cls, subject: Subject, shots: Sequence[Shot], out: Path, ladder: Ladder | None = None, tell: Tell = silent
    ) -> Oracle:
        """A search that goes on where `out` was left, or begins.

        Raises:
            SpecError: guides that this model cannot run, two samples of one name.
            BenchError: the folder cannot be written.
        """
        ladder = ladder or Ladder()
        if len({shot.id for shot in shots}) < len(shots):
            raise SpecError("Expected samples of different prompts or seeds, got one of them twice.")
        subject.check([shot.prompt.text for shot in shots])
        own = subject.defaults
        guides = [subject.admit(parse_column(spec, *own)) for spec in ladder.guides]
        subject.load(guides)
        same = {k: v for k, v in fingerprint(subject, shots, ()).items() if "prompts" not in k}
        same |= {"model": subject.name, "guidance": subject.guidance, "settings": subject.settings}
        same |= {"fine": ladder.fine, "reference": ladder.reference}
        return cls(subject, shots, Kept.open(out, same), ladder, tell)

    def tried(self, utility: Utility | None = None) -> dict[str, list[Tried]]:
        """Sample -> every schedule that ran on it.

        Args:
            utility: That `sweeps` climb by; without one they are left out.

        Raises:
            BenchError: a reference run was lost.
        """
        trials, fine = self._trials(), self._fine
        asked: list[Trial] = []
        for k, shot in enumerate(self.shots):
            self.tell("Finding each sample's own grids", k, len(self.shots))
            asked += [Trial(shot, column, "guide") for column in self._guides]
            asked += [Trial(shot, column, "own") for column in self._own(shot, fine)]
        found = trials.run(asked)
        if self.ladder.sweeps and utility is not None:
            climbed(found, self.shots, trials, self._draws, fine, utility, self.ladder.sweeps)
        return found

    def choices(self, utility: Utility) -> list[Choice]:
        """The best that was tried, of each sample."""
        found = self.tried(utility)
        return [best(shot.id, found[shot.id], utility) for shot in self.shots]

    # -- what is tried ----------------------------------------------------------------------------

    @property
    def _draws(self) -> Draws:
        return Draws(self.subject, self.kept, self.ladder.fine, self.ladder.batch, tell=self.tell)

    @cached_property
    def _fine(self) -> Fine:
        return self._draws.fine(self.shots[0])

    @property
    def _guides(self) -> list[Column]:
        own = self.subject.defaults
        return [self.subject.admit(parse_column(spec, *own)) for spec in self.ladder.guides]

    def _own(self, shot: Shot, fine: Fine) -> list[Column]:
        """The grids that should be best for this sample, by its own errors."""
        if not (self.ladder.calls and self.ladder.forecasts):
            return []
        what = f"own grids of {sorted(set(self.ladder.calls))} by {self.ladder.gain}"
        known = self.kept.arrays(what, shot)
        if known is None:
            known = {str(k): path for k, path in enumerate(self._paths(shot, fine))}
            self.kept.save(what, shot, **known)
        paths = [tuple(map(int, known[str(k)])) for k in range(len(known))]
        return [self._draws.column(fine.policy(path, of)) for path in paths for of in self.ladder.forecasts]

    def _paths(self, shot: Shot, fine: Fine) -> list[tuple[int, ...]]:
        """For each number of calls the shortest by this sample's errors, weighed by the gain and not."""
        import numpy as np

        longest = max(2, round(LONGEST * fine.steps))
        errors = local_errors(np.array(fine.angles), self._draws.grams([shot], fine), longest)
        left = [errors, *([] if self.ladder.gain is None else [errors.times(self._gain(fine)[None])])]
        listed = [p for one in left for p in shortest_of(one.table[0], sorted(set(self.ladder.calls))).values()]
        return list(dict.fromkeys(listed))

    def _gain(self, fine: Fine) -> Any:
        """At every place, linear in its logarithm between those that were said."""
        import numpy as np

        pairs = sorted(self.ladder.gain or ())
        known, values = [angle for angle, _ in pairs], [max(gain, 1e-9) for _, gain in pairs]
        return np.exp(np.interp(fine.angles, known, np.log(values)))

    def _trials(self) -> Trials:
        fine = self._fine
        pictures = self._draws.pictures(self.shots, fine, FINE, range(fine.steps + 1))
        if self.ladder.reference:
            pictures = self._references()
        references = {shot.id: picture for shot, picture in zip(self.shots, pictures, strict=True)}
        against = self.ladder.reference or FINE
        return Trials(self.subject, self.kept, references, against, self.ladder.batch, self.tell)

    def _references(self) -> list[Any]:
        """Pictures of the converged run, kept."""
        own = self.subject.defaults
        column = self.subject.admit(parse_column(self.ladder.reference, *own))
        missing = [shot for shot in self.shots if self.kept.arrays(REFERENCE, shot) is None]
        for first in range(0, len(missing), self.ladder.batch):
            self.tell("Drawing converged runs", len(self.shots) - len(missing) + first, len(self.shots))
            some = missing[first : first + self.ladder.batch]
            made, _ = self.subject.draw([shot.item for shot in some], column)
            for shot, pixels in zip(some, self.subject.pictures(made), strict=True):
                self.kept.save(REFERENCE, shot, pixels=pixels)
        return [found["pixels"] for shot in self.shots if (found := self.kept.arrays(REFERENCE, shot)) is not None]


def oracle_schedule(
    subject: Subject,
    shots: Sequence[Shot],
    out: Path,
    utility: Utility,
    ladder: Ladder | None = None,
    tell: Tell = silent,
) -> list[Choice]:
    """Each sample's best schedule by a utility, out of all that were really run; written to `out/oracle.jsonl`.

    A bound from below on what choosing by sample can reach: the best that was found, and of many tries the luckiest.
    The same command goes on where it was stopped, and other utilities reuse its runs.

    Args:
        subject: The model.
        shots: Prompts and seeds.
        out: A folder.
        utility: What is best.
        ladder: What is tried.
        tell: Of the progress.

    Raises:
        SpecError: guides that this model cannot run.
        BenchError: the folder cannot be written, or a reference run was lost.
    """
    oracle = Oracle.open(subject, shots, out, ladder, tell)
    found = oracle.tried(utility)
    chosen = [best(shot.id, found[shot.id], utility) for shot in shots]
    fixed = best_guide(found, utility)
    lines = []
    for choice in chosen:
        one = choice.tried
        line = {"sample": choice.sample, "utility": choice.utility, "calls": one.calls, "psnr": one.psnr}
        line |= {"kind": one.kind, "spec": one.spec, "tried": len(found[choice.sample])}
        if fixed is not None:
            same = next(t for t in found[choice.sample] if t.spec == fixed and t.kind == "guide")
            line |= {"guide": fixed, "guide_utility": utility.of(same.psnr, same.calls), "guide_calls": same.calls}
        lines.append(line | {"price": utility.price, "floor": utility.floor, "cap": utility.cap})
    text = "".join(json.dumps(plain(line), ensure_ascii=False) + "\n" for line in lines)
    put(out / RESULTS, text.encode())
    return chosen


def best_guide(found: Mapping[str, Sequence[Tried]], utility: Utility) -> str | None:
    """Spec of the one guide of the highest mean utility over all samples, None where there are no guides.

    Chosen on these very samples, which is generous to it.
    """
    listed: dict[str, list[float]] = {}
    for tried in found.values():
        for one in tried:
            if one.kind == "guide":
                listed.setdefault(one.spec, []).append(utility.of(one.psnr, one.calls))
    means = {spec: statistics.fmean(values) for spec, values in listed.items() if len(values) == len(found)}
    return max(means, key=means.__getitem__) if means else None
