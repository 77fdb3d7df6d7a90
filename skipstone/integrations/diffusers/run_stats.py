"""Statistics of a call of an adapted pipeline, for each of its samples."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...engine.contracts import Policy, Run
from ...engine.timeline import TimelinePanel, plot_timeline
from ...engine.trace import explain, letters, save
from ...registry import spell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .call_context import FinishedTrajectory


@dataclass(frozen=True)
class SampleStats:
    """One sample of one trajectory.

    `calls` counts rows that really entered the network, over the rows of a sample in the first step: a guided call is
    1, and one branch of it a half. `full_calls` counts the rows that the pipeline asked for, as a bare run makes them.
    `seconds` is its share, by rows, of the time from the first call to the last step.
    """

    run: Run
    calls: float
    full_calls: float
    seconds: float
    refusal: str = ""  # why the run was not taken over, where another policy decided in its place

    @property
    def saved(self) -> float:
        """Share of the bare run's calls that were not made."""
        return 1 - self.calls / self.full_calls

    @property
    def decisions(self) -> str:
        """A letter a step: C call, c one branch forecast, . forecast, F finish."""
        return letters(self.run)

    def explain(self) -> str:
        """Each step and its reasons, in words."""
        told = explain(self.run, self.full_calls)
        return f"{told}\n{_describe(self.refusal)}" if self.refusal else told

    def save(self, path: str | os.PathLike[str], **meta: Any) -> None:
        """Write the run as a trace, for `skipstone explain`."""
        save(path, self.run, **({"refusal": self.refusal} if self.refusal else {}), **meta)


@dataclass(frozen=True)
class RunStats(Sequence[SampleStats]):
    """Statistics of the latest call of an adapted pipeline: a sequence with an entry for each sample.

    Pipelines that denoise several times in one call list the samples of each trajectory, one after another.
    """

    policy: str
    samples: tuple[SampleStats, ...]
    verified: int  # rows that entered only to check that rows are independent; in no sample's calls
    seconds: float  # of the whole call, encoding and decoding included
    uncovered: tuple[str, ...] = ()  # why a certificate does not cover the call; empty where it does
    refusal: str = ""  # why a preset could not take the loop over, and `policy` decided in its place

    @staticmethod
    def from_trajectories(
        policy: Policy,
        trajectories: Sequence[FinishedTrajectory],
        seconds: float,
        uncovered: tuple[str, ...] = (),
        refusal: str = "",
    ) -> RunStats:
        """Return the statistics of finished trajectories."""
        samples = []
        for t in trajectories:
            entered = max(1, sum(t.rows))
            for run, rows in zip(t.runs, t.rows, strict=True):
                samples.append(SampleStats(run, rows / t.branches, t.full, t.seconds * rows / entered, refusal))
        verified = sum(t.verified for t in trajectories)
        return RunStats(spell(policy), tuple(samples), verified, seconds, uncovered, refusal)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[SampleStats]:
        return iter(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index]

    @property
    def calls(self) -> float:
        """Mean calls of a sample."""
        return sum(s.calls for s in self.samples) / max(1, len(self.samples))

    @property
    def saved(self) -> float:
        """Share of the bare run's calls that were not made, over all samples."""
        full = sum(s.full_calls for s in self.samples)
        return 1 - sum(s.calls for s in self.samples) / full if full else 0.0

    def summary(self) -> str:
        """A line for the call, one for each sample, and one for what was not done as it was asked for."""
        many = "" if len(self.samples) == 1 else f" over {len(self.samples)} samples"
        lines = [f"{self.policy}: {self.calls:g} calls{many}, {self.saved:.0%} saved, {self.seconds:.2f} s."]
        for i, s in enumerate(self.samples):
            lines.append(f"{i:3d}  {s.calls:g} of {s.full_calls:g} calls  {s.saved:4.0%} saved  {s.decisions}")
        if self.verified:
            lines.append(f"{self.verified} more rows entered the network to check that its rows are independent.")
        if self.refusal:
            lines.append(_describe(self.refusal))
        if self.uncovered:
            lines.append(f"not covered: {'; '.join(self.uncovered)}. The certificate promises nothing of this call.")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The statistics as JSON text."""
        samples = [
            {
                "calls": s.calls,
                "full_calls": s.full_calls,
                "saved": s.saved,
                "seconds": s.seconds,
                "decisions": s.decisions,
            }
            for s in self.samples
        ]
        document = {"policy": self.policy, "seconds": self.seconds, "verified": self.verified, "samples": samples}
        return json.dumps({**document, "uncovered": list(self.uncovered), "refusal": self.refusal})

    def plot(self) -> Figure:
        """The decisions as a picture; `.plot().savefig("decisions.png")` keeps it."""
        title = f"{self.policy}  ({self.calls:.1f} calls)"
        return plot_timeline([TimelinePanel(title, [(f"sample {i}", s.run) for i, s in enumerate(self.samples)])])


def _describe(refusal: str) -> str:
    """The sentence about a takeover that was refused."""
    return f"not taken over: {refusal}. The policy decided in the pipeline's own steps."
