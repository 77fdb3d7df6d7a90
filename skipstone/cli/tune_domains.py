"""`skipstone tune --domains`: one setting for each domain of prompts, and the classifier that tells domains apart."""

from __future__ import annotations

import datetime
import hashlib
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias

import typer

from ..satellites import require_module
from .grouping import LAST
from .printing import print_line, print_table
from .progress import print_warnings, progress_bar, show_status

if TYPE_CHECKING:
    from rich.console import Console

    from ..evaluation.progress import ProgressCallback
    from ..evaluation.prompt import Prompt
    from ..evaluation.subject import Subject
    from ..policies.domains.classifier import DomainClassifier
    from ..tuning.domains.fit import FitReport, Inputs
    from ..tuning.domains.labelled import LabelledPrompts
    from ..tuning.domains.search import DomainResult, DomainSamples
    from ..tuning.search import TuningSettings

FeatureChoice: TypeAlias = Literal["auto", "states", "clip", "words"]
ENOUGH = 12  # samples: on Pebble, grids of 8 calls found on 4 were worse than even ones on others
CHECKED = 10_000  # added to the seeds of the check, so that no noise is in both
MOST = 1_000  # prompts of a domain that the classifier learns from


@dataclass(frozen=True)
class DomainOptions:
    """Options of a search by domain."""

    domains: Annotated[
        str,
        typer.Option(
            help="One setting for each domain of these prompts: a folder of NAME.txt files, a table or .jsonl with a "
            "column `domain`, or a set with categories. In place of --prompts.",
            metavar="FOLDER|FILE|SET",
        ),
    ] = field(default="", metadata=LAST)
    features: Annotated[
        FeatureChoice,
        typer.Option(
            help="What tells domains apart: states (the model's text states), clip, or words (n-grams). auto takes "
            "states where the model has them, words otherwise.",
        ),
    ] = field(default="auto", metadata=LAST)
    clip: Annotated[
        str,
        typer.Option(help="Of --features clip: folder of a CLIP, or its id where it is downloaded.", metavar="FOLDER"),
    ] = field(default="", metadata=LAST)


class DomainSearchOptions(Protocol):
    """What is read of the options of `tune`; those of `DomainOptions` are among them."""

    @property
    def domains(self) -> str: ...
    @property
    def features(self) -> FeatureChoice: ...
    @property
    def clip(self) -> str: ...
    @property
    def policy(self) -> Any: ...
    @property
    def check(self) -> str: ...
    @property
    def samples(self) -> int | None: ...
    @property
    def limit(self) -> int: ...
    @property
    def prompt_format(self) -> str | None: ...


def _check_options(wanted: DomainSearchOptions, prompts: str | None) -> None:
    """Raise SpecError for options that --domains takes the place of, or that it lacks."""
    from ..errors import SpecError

    given = {"--prompts": prompts, "--check": wanted.check, "--samples": wanted.samples}
    if found := [name for name, value in given.items() if value]:
        raise SpecError(f"--domains brings its own prompts, and checks on others of them: leave {found[0]} out.")
    if (wanted.features == "clip") is not bool(wanted.clip):
        raise SpecError("--features clip needs the folder of a CLIP, and nothing else does: --clip FOLDER.")


def tune_domains(
    wanted: DomainSearchOptions,
    prompts: str | None,
    out: Path,
    make_subject: Callable[[], Subject],
    settings: TuningSettings,
    force: bool,
) -> None:
    """Train the classifier, search for each domain, and write a folder for each number of calls.

    Args:
        wanted: The domains, what tells them apart, what is tuned, and on how many prompts of each.
        prompts: Of --prompts, which may not be said.
        out: A folder.
        make_subject: Looks the model up.
        settings: Of the searches.
        force: Overwrite results that are there.
    """
    from rich.console import Console

    from ..evaluation.folder_lock import lock_folder
    from ..tuning.domains import report
    from ..tuning.domains.labelled import read_labelled
    from .files import check_targets
    from .prompts import check_prompts

    _check_options(wanted, prompts)
    for module, extra in (("sklearn", "tune"), ("matplotlib", "plot")):
        require_module(module, extra)
    console = Console(stderr=True)
    with lock_folder(out):
        check_targets(report.report_files(out, settings.calls), force)
        labelled = read_labelled(wanted.domains, wanted.prompt_format, MOST)
        with show_status(console, "Looking the model up ..."):
            subject = make_subject()
        texts = [prompt.text for prompt in labelled.prompts]
        check_prompts(texts, subject, console)
        groups = split_groups(labelled, wanted.limit, settings.seed)
        if few := [f"{len(one.tuning)} of {one.domain}" for one in groups if len(one.tuning) < ENOUGH]:
            print_line(
                console, f"Tuning prompts are few: {', '.join(few)}. What is best for them may be bad for others."
            )
        classifier, fitted, found = _search(wanted, subject, labelled, groups, settings, out, console)
        about = _about(subject, wanted.domains, labelled, groups)
        written = report.write_report(found, classifier, fitted, texts, out, about)
    _show(found, fitted, written, labelled, console)


def _search(
    wanted: DomainSearchOptions,
    subject: Subject,
    labelled: LabelledPrompts,
    groups: Sequence[DomainSamples],
    settings: TuningSettings,
    out: Path,
    console: Console,
) -> tuple[DomainClassifier, FitReport, DomainResult]:
    """The classifier, how well it does, and what was found; progress on the console."""
    from ..tuning.configuration import open_cache
    from ..tuning.domains.fit import fit_classifier
    from ..tuning.domains.search import DomainSearch

    try:
        with print_warnings(console), progress_bar(console) as on_progress:
            cache = open_cache(subject, settings, [one for group in groups for one in group.tuning], out)
            inputs = _inputs(wanted, subject, labelled, settings.batch, on_progress)
            on_progress("Learning to tell domains apart", 0, 1)
            classifier, fitted = fit_classifier(inputs, settings.seed)
            guesses = _guesses(groups, labelled, fitted)
            search = DomainSearch(subject, settings, groups, guesses, cache, on_progress)
            found = search.run_paths() if wanted.policy == "path" else search.run_slopes()
    except KeyboardInterrupt:
        print_line(console, f"Stopped. What is drawn is kept in {out}; the same command goes on.")
        raise
    return classifier, fitted, found


def split_groups(labelled: LabelledPrompts, limit: int, seed: int) -> list[DomainSamples]:
    """For each domain prompts to tune on, and as many others to check on, under other seeds.

    Args:
        labelled: The prompts.
        limit: Of each half of a domain; 0 takes all. A domain that has fewer than twice as many is halved.
        seed: Of the first sample.
    """
    from ..evaluation.prompts import sample_prompts
    from ..evaluation.references import EvaluationSample
    from ..tuning.domains.search import DomainSamples

    groups, first = [], seed
    for domain in labelled.domains:
        own = _named(labelled.of(domain))
        half = min(limit or len(own), len(own) // 2)
        drawn = sample_prompts(own, 2 * half, 0)
        tuned, checked = (
            [EvaluationSample(prompt, start + k) for k, prompt in enumerate(some)]
            for some, start in ((drawn[::2], first), (drawn[1::2], first + CHECKED))
        )
        groups.append(DomainSamples(domain, tuned, checked))
        first += half
    return groups


def _named(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts whose ids tell edited texts apart, as `tune` names them."""
    return [replace(p, id=f"{p.id}-{hashlib.sha256(p.text.encode()).hexdigest()[:6]}") for p in prompts]


def _inputs(
    wanted: DomainSearchOptions,
    subject: Subject,
    labelled: LabelledPrompts,
    batch: int,
    on_progress: ProgressCallback,
) -> Inputs:
    """What the classifier learns from."""
    from ..tuning.domains.fit import Inputs
    from ..tuning.domains.states import prompt_states

    texts = [prompt.text for prompt in labelled.prompts]
    states = prompt_states(subject, texts, batch, on_progress) if wanted.features in ("auto", "states") else None
    kind = wanted.features if wanted.features != "auto" else "words" if states is None else "states"
    return Inputs(labelled.prompts, states, kind, wanted.clip)


def _guesses(groups: Sequence[DomainSamples], labelled: LabelledPrompts, fitted: FitReport) -> dict[str, str]:
    """Sample of the check -> what a classifier says of its prompt that was trained without it."""
    known = {prompt.text: guess for prompt, guess in zip(labelled.prompts, fitted.guesses, strict=True)}
    return {sample.id: known[sample.prompt.text] for group in groups for sample in group.check}


def _about(subject: Subject, source: str, labelled: LabelledPrompts, groups: Sequence[DomainSamples]) -> dict[str, Any]:
    """The description that is stored with the results."""
    from ..evaluation.fingerprint import describe_machine, fingerprint

    check = [sample for group in groups for sample in group.check]
    tuning = [sample for group in groups for sample in group.tuning]
    return {
        "model": subject.name,
        "guidance": subject.guidance,
        "settings": subject.settings,
        "prompts": source,
        "domains": {group.domain: [len(group.tuning), len(group.check)] for group in groups},
        "under several domains": labelled.dropped,
        "fingerprint": fingerprint(subject, check, tuning),
        "machine": describe_machine(subject),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["skipstone", *sys.argv[1:]]),
    }


def _show(
    found: DomainResult, fitted: FitReport, written: Sequence[Path], labelled: LabelledPrompts, notes: Console
) -> None:
    """Print what was found, the paths of all files, and the command that uses the first policy."""
    from rich.console import Console

    from ..tuning.domains.report import table

    for note in found.notes:
        notes.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if labelled.dropped:
        print_line(notes, f"{labelled.dropped} prompts stand under several domains and were left out.")
    head, *body = table(found)
    console = Console()
    print_table(console, head, body, left=range(1, len(head)))
    print_line(console, f"\n{fitted.words}")
    for calls in found.calls:
        print_line(console, found.words(calls))
    for path in written:
        print_line(console, str(path))
    print_line(console, f"Use one: {shlex.join(['skipstone', 'generate', '...', '--policy', str(written[0].parent)])}")
