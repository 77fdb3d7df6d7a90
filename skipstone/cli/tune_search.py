"""`skipstone tune --search`: options of joint searches, and how they run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .printing import print_line, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from ..calibration.target import Target
    from ..evaluation.references import EvaluationSample
    from ..evaluation.subject import Subject
    from ..tuning.joint import JointResult, JointSearch
    from ..tuning.search import TuningSettings

MAX_BUDGET = 10**9  # calls
MAX_MILLISECONDS = 86_400_000.0
TARGET_CALLS = (6, 8, 10, 12, 15, 20, 25)  # that are tried for a target, the least first


@dataclass(frozen=True)
class JointOptions:
    """Options of `--search`."""

    search: Annotated[
        str,
        typer.Option(
            help="Search solver, grid, policy and settings together, after the grids: random, cem, tpe, nsga2, ppo or "
            "all, each with as many calls.",
            metavar="NAME",
            show_default=False,
        ),
    ] = ""
    budget: Annotated[
        int | None,
        options.number(
            least=1,
            most=MAX_BUDGET,
            help="Of --search: network calls that each search may make, for each of --calls; 40 candidates by default.",
            show_default=False,
        ),
    ] = None
    space: Annotated[
        Path | None,
        typer.Option(help="Of --search: what is searched, in YAML.", metavar="FILE", show_default=False),
    ] = None
    target: Annotated[
        str,
        typer.Option(
            help="Of --search: the least calls that meet it on the check, such as 'psnr >= 35 @ 90%'.",
            metavar="TARGET",
            show_default=False,
        ),
    ] = ""
    milliseconds: Annotated[
        float | None,
        options.number(
            least=0.001,
            most=MAX_MILLISECONDS,
            help="Of --search, in place of --calls: what the network may take for one picture on this machine.",
            show_default=False,
        ),
    ] = None

    def check(self, calls: Sequence[int] | None, beside: str) -> None:
        """Hold the options against each other, before anything is loaded. Raises SpecError, MissingPackage."""
        from ..errors import SpecError
        from ..satellites import require_module
        from ..tuning.searches import find_searches

        of = {"--budget": self.budget, "--space": self.space, "--target": self.target}
        said = [name for name, value in {**of, "--milliseconds": self.milliseconds}.items() if value]
        if not self.search:
            if said:
                raise SpecError(f"{said[0]} is for --search: add --search tpe, or another of: random, cem, nsga2, all.")
            return
        if beside != "--policy path":
            raise SpecError(f"--search searches by itself: leave {beside} out, or --search.")
        if self.milliseconds is not None and (calls or self.target):
            raise SpecError(
                f"--milliseconds says how many calls there are: leave {'--calls' if calls else '--target'} out."
            )
        find_searches(self.search)
        self.parsed_target()
        require_module("matplotlib", "plot")

    def parsed_target(self) -> Target | None:
        """The target, None where there is none. Raises SpecError for one of another metric than psnr."""
        from ..calibration.target import Target
        from ..errors import SpecError

        if not self.target:
            return None
        target = Target.parse(self.target)
        if target.metric != "psnr":
            raise SpecError(
                f"--target: tune measures psnr, got {target.metric}. skipstone calibrate takes targets of all metrics, "
                f"and guarantees them."
            )
        return target


@dataclass(frozen=True)
class JointRun:
    """All that a joint search of the command needs.

    Args:
        wanted: The options.
        subject: The model.
        settings: Of the dynamic programming.
    """

    wanted: JointOptions
    subject: Subject
    settings: TuningSettings

    def check(self, samples: int) -> None:
        """Raise SpecError for a budget too small, or a space that is none, before anything is drawn."""
        from ..tuning.joint import budget_for
        from ..tuning.space_file import read_space

        for calls in self.settings.calls:
            budget_for(self.wanted.budget or 0, calls, samples)
        if self.wanted.space is not None:
            read_space(self.wanted.space)

    def make(
        self, eval_samples: Sequence[EvaluationSample], check: Sequence[EvaluationSample], cache: Any, progress: Any
    ) -> JointSearch:
        """The search."""
        from ..tuning.joint import JointSearch, JointSettings
        from ..tuning.searches import find_searches
        from ..tuning.space_file import read_space

        space = read_space(self.wanted.space) if self.wanted.space else None
        joint = JointSettings(find_searches(self.wanted.search), self.wanted.budget or 0, self.settings.seed, space)
        return JointSearch(self.subject, self.settings, joint, eval_samples, check, cache, progress)

    def run(self, search: JointSearch) -> tuple[list[JointResult], str]:
        """What was found, and what is to be said of a target."""
        from ..tuning.target_search import least_calls

        target = self.wanted.parsed_target()
        if target is None:
            return search.run(), ""
        return least_calls(search, target)


def joint_calls(
    wanted: JointOptions, calls: Sequence[int] | None, usual: Sequence[int], make: Callable[[], Subject]
) -> list[int]:
    """Numbers of calls: those of the command, of a target, or as many as the model of `make` has time for."""
    from ..tuning.latency import calls_within, latency_table

    if wanted.milliseconds is not None:
        return [calls_within(latency_table(make()), wanted.milliseconds)]
    if calls:
        return list(calls)
    return list(TARGET_CALLS if wanted.target else usual)


def show_joint(
    found: Sequence[JointResult], written: Sequence[Path], words: str, folder: Callable[[int], Path], console: Console
) -> None:
    """Print the tables, what was found, the paths of all files, and the command that uses the first policy."""
    from ..tuning.joint_report import table

    for one in found:
        head, *body = table(one)
        print_table(console, head, body, left=[0])
        print_line(console, f"{one.words}\n")
    print_line(
        console,
        "PSNR in dB on samples that nothing was searched on. lead: over the dynamic programming, and standard error.",
    )
    if words:
        print_line(console, words)
    for path in written:
        print_line(console, str(path))
    print_line(
        console, f"Use one: {shlex.join(['skipstone', 'generate', '...', '--policy', str(folder(found[0].calls))])}"
    )
