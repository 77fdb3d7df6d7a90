"""A round as its steps see it, and what a step is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipstone.errors import SkipstoneError, SpecError
from skipstone.evaluation.fingerprint import RESULTS_VERSION
from skipstone.serving.fingerprint import weights_fingerprint

from .records import StepRecord
from .server import Server, ServerProcess
from .settings import LoopSettings


class StepFailed(SkipstoneError):
    """A step whose result is that the round ends: no setting keeps the target, a promise fails on other prompts."""


@dataclass(eq=False)
class Round:
    """A round while it runs.

    Args:
        settings: Of the loop.
        number: From 1.
        weights: SHA-256 of the model's files when it began.
        process: The server that the loop starts.
        say: Called with each line about what happens.
        records: Step -> record, of the steps that have finished.
        folders: Step -> folder of what it wrote.
        server: That draws; None before the first `deploy`.
        deployed, released: SHA-256 of the weights, and of all files, that were deployed last; "" where none were.
    """

    settings: LoopSettings
    number: int
    weights: str
    process: ServerProcess
    say: Callable[[str], None]
    records: dict[str, StepRecord] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    server: Server | None = None
    deployed: str = ""
    released: str = ""

    @property
    def place(self) -> Path:
        """The loop's folder."""
        return self.settings.place

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return model_folder(self.settings)

    @property
    def versions(self) -> Mapping[str, str]:
        """What pictures depend on beside weights and settings."""
        from importlib.metadata import version

        return {"results": RESULTS_VERSION, "torch": version("torch"), "diffusers": version("diffusers")}

    def output(self, step: str) -> str:
        """SHA-256 of what an earlier step wrote; "" of one that this loop does not have."""
        return self.records[step].output if step in self.records else ""

    def check_weights(self) -> None:
        """Raise StepFailed where the model's files are not those that the round began with."""
        if weights_fingerprint(self.model) != self.weights:
            raise StepFailed(f"{self.model} was changed while the round ran: run the loop again.")


@dataclass(frozen=True)
class StepResult:
    """What a step has to say; see `StepRecord`."""

    lines: Sequence[str] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    commands: Sequence[str] = ()
    prompts: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Step:
    """A step of the loop.

    Args:
        name: Its name.
        run: Called with the round and an empty folder.
        inputs: What it depends on; None of a step that is run in every round.
    """

    name: str
    run: Callable[[Round, Path], StepResult]
    inputs: Callable[[Round], Mapping[str, str]] | None = None


def model_folder(settings: LoopSettings) -> Path:
    """Folder of the loop's model: the one that the file names, or the loop's copy of a model of a package."""
    from skipstone.evaluation.models import model_packages

    is_name = any(settings.model in package.names for package in model_packages())
    return settings.place / settings.name if is_name else Path(settings.model)


def run_command(log: Path, *words: str) -> str:
    """Run a command of Skipstone in this process; returns it as it would be typed.

    Args:
        log: File that what it prints goes to, but for its progress.
        words: Of the command line.

    Raises:
        SkipstoneError: what the command raises.
        StepFailed: another exit code than 0.
    """
    import contextlib
    import shlex

    import click
    import typer.main

    from skipstone.cli import app

    with log.open("a", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        try:
            code = typer.main.get_command(app).main(list(words), prog_name="skipstone", standalone_mode=False)
        except (click.exceptions.Abort, typer.Abort):
            raise KeyboardInterrupt from None
        except click.ClickException as e:
            raise SpecError(f"skipstone {words[0]}: {e.format_message()}") from None
    typed = shlex.join(["skipstone", *words])
    if isinstance(code, int) and code:
        raise StepFailed(f"{typed} ended with exit code {code}.")
    return typed
