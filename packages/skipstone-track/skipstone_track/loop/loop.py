"""The loop itself: rounds of steps, of which one whose inputs are those of an earlier run is not run again."""

from __future__ import annotations

import datetime
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from skipstone.errors import ModelError, TargetMissedError
from skipstone.evaluation.folder_lock import lock_folder
from skipstone.evaluation.models import find_model_package
from skipstone.serving.fingerprint import weights_fingerprint

from .engine import run_steps
from .page import write_page
from .records import (
    ALARM,
    DONE,
    FAILED,
    STOPPED,
    RoundRecord,
    StepEntry,
    StepRecord,
    close_rounds,
    files_of,
    find_finished,
    read_rounds,
    round_folder,
    step_folder,
    sum_of,
    write_record,
)
from .release import read_key
from .round import Round, Step, StepFailed, model_folder
from .server import Server, ServerProcess
from .settings import LoopSettings
from .steps import steps_of
from .tracking import LoopTracker

SERVER_FOLDER = "server"
WIDTH = 10  # of the names of steps


@dataclass(eq=False)
class Loop:
    """A loop that runs, with the server that it has started.

        with open_loop(load_loop(path), print) as loop:
            record = loop.run_round()

    Args:
        settings: Of the loop.
        say: Called with each line about what happens.
        server: That draws; None before the first `deploy`.
    """

    settings: LoopSettings
    say: Callable[[str], None]
    server: Server | None = None
    _deployed: tuple[str, str] = ("", "")
    _process: ServerProcess = field(init=False)
    _tracker: LoopTracker = field(init=False)

    def __post_init__(self) -> None:
        settings, deploy = self.settings, self.settings.deploy
        model = prepare_model(settings, self.say)
        words = ["--port", str(deploy.port), "--audit", f"{deploy.audit:g}", *deploy.options]
        self._process = ServerProcess(settings.place / SERVER_FOLDER, settings.name, model, words)
        self._tracker = LoopTracker(settings, lambda line: self.say(f"{'track':{WIDTH}} {line}"))
        if deploy.address:
            self.server = Server(deploy.address.rstrip("/"), read_key(deploy.admin_key), settings.name)

    def run_round(self) -> RoundRecord:
        """Run the steps of a round; what each has done is kept as soon as it is done.

        Raises:
            SkipstoneError: something that the next round would meet again. A promise that is not kept, and a target
                that no setting meets, are in the record.
        """
        number = len(read_rounds(self.settings.place)) + 1
        at = self._begin(number)
        record = RoundRecord(number, _now(), weights=at.weights)
        began = time.monotonic()
        kept = _Kept(self.settings.place, record)
        try:
            steps = steps_of(self.settings, self.server is not None)
            run_steps(steps, lambda step: self._run_step(at, step, kept), self.settings.place, self.settings.name)
            alarm = str(at.records["audit"].details["alarm"])
            kept.end(ALARM if alarm else DONE, alarm, began)
        except (StepFailed, TargetMissedError) as e:
            self.say(f"{'stopped':{WIDTH}} {e}")
            kept.end(FAILED, str(e), began)
        except BaseException as e:
            kept.end(STOPPED if isinstance(e, KeyboardInterrupt) else FAILED, str(e) or type(e).__name__, began)
            raise
        finally:
            self.server, self._deployed = at.server, (at.deployed, at.released)
            with suppress(KeyboardInterrupt):
                write_page(self.settings)
        self._tracker.sync(patient=True)
        write_page(self.settings)
        return kept.record

    def _begin(self, number: int) -> Round:
        weights = weights_fingerprint(model_folder(self.settings))
        self.say(f"Round {number} of {self.settings.name}, weights {weights[:12]}")
        at = Round(self.settings, number, weights, self._process, self.say)
        at.server, (at.deployed, at.released) = self.server, self._deployed
        return at

    def _run_step(self, at: Round, step: Step, kept: _Kept) -> None:
        """Run a step, or take what it has done before."""
        inputs = dict(step.inputs(at)) if step.inputs else {"round": str(at.number)}
        key = sum_of({"step": step.name, **inputs})
        folder = step_folder(at.place, step.name, key) if step.inputs else round_folder(at.place, at.number) / step.name
        record, changed = find_finished(folder, key)
        if changed:
            self._say(step, f"{changed[0]} in {folder} since it was written: the step is run again")
            shutil.rmtree(folder)
        new = record is None
        if record is None:
            record = _run(at, step, folder, StepRecord(step.name, key, inputs, round=at.number))
        lines = [f"{line}" for line in record.lines]
        how = f"{record.seconds:.0f} s" if new else f"unchanged since round {record.round}"
        self._say(step, f"{lines[0] if lines else 'done'} ({how})", *(lines[1:] if new else ()))
        at.records[step.name], at.folders[step.name] = record, folder
        kept.add(StepEntry(step.name, folder.relative_to(at.place).as_posix(), new))
        self._tracker.sync()
        kept.reread()

    def _say(self, step: Step, first: str, *others: str) -> None:
        self.say(f"{step.name:{WIDTH}} {first}")
        for line in others:
            self.say(f"{'':{WIDTH}} {line}")

    def upload(self) -> bool:
        """Log and register what the tracker could not be told; whether it has all of it now."""
        return self._tracker.sync(patient=True)

    def use_tracker(self, uri: str) -> None:
        """Log to another tracker from now on, such as the one that has taken the place of one that is down."""
        self.settings = replace(self.settings, track=uri)
        self._tracker.settings = self.settings

    def close(self) -> None:
        """End the server that the loop has started."""
        self._process.stop()


def _run(at: Round, step: Step, folder: Path, record: StepRecord) -> StepRecord:
    """The record of a step after it was run; a step that was cut off finds what it has left in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    found = step.run(at, folder)
    record = replace(
        record,
        lines=list(found.lines),
        figures=dict(found.figures),
        details=dict(found.details),
        commands=list(found.commands),
        prompts=[list(one) for one in found.prompts],
        files=files_of(folder),
        seconds=round(time.monotonic() - began, 1),
        date=_now(),
    )
    write_record(folder, record)
    return record


@dataclass(eq=False)
class _Kept:
    """The record of the round that runs, and its file."""

    place: Path
    record: RoundRecord

    def __post_init__(self) -> None:
        self._write()

    def _write(self) -> None:
        write_record(round_folder(self.place, self.record.number), self.record)

    def add(self, entry: StepEntry) -> None:
        """A step has finished."""
        self.record = replace(self.record, steps=[*self.record.steps, entry])
        self._write()

    def end(self, status: str, words: str, began: float) -> None:
        """The round has ended."""
        seconds = round(time.monotonic() - began, 1)
        self.record = replace(self.record, status=status, words=words, seconds=seconds)
        self._write()

    def reread(self) -> None:
        """What the tracker has added: ids of runs."""
        self.record = read_rounds(self.place)[self.record.number - 1]


@contextmanager
def open_loop(settings: LoopSettings, say: Callable[[str], None]) -> Iterator[Loop]:
    """A loop that nobody else runs in the same folder; its server ends with it, whatever happens.

    Args:
        settings: Of the loop.
        say: Called with each line about what happens.

    Raises:
        OutputError: another command runs the loop in this folder.
        ModelError: no such model.
    """
    with lock_folder(settings.place, "folder"), _end_on_sigterm():
        close_rounds(settings.place)
        loop = Loop(settings, say)
        try:
            yield loop
        finally:
            loop.close()


@contextmanager
def _end_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the loop as Ctrl-C does, so that its server ends too; nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def prepare_model(settings: LoopSettings, say: Callable[[str], None]) -> Path:
    """Folder of the loop's model; the model of a package is copied once, without its certificates.

    Raises:
        ModelError: no such model, or one that the server cannot serve.
    """
    folder = model_folder(settings)
    package = find_model_package(str(folder) if folder.is_dir() else settings.model)
    if package is None:
        raise ModelError(
            f"model: {settings.model} is no model of a package such as skipstone-pebble, and only those are served. "
            f"Name pebble, pebble-dit or a folder of their format."
        )
    if not folder.is_dir():
        package.copy(settings.model, folder)
        say(f"{settings.model} was copied to {folder}: that is what the loop serves, and what may be trained further")
    package.find(str(folder))
    return folder


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
