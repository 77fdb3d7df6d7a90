"""Rounds in MLflow: a run for each, with a nested one for each step; what could not be logged is logged later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..connection import TrackerError, connect, display_uri, experiment_id
from ..tracker import MlflowTracker
from .pending import read_pending, write_pending
from .records import ALARM, DONE, RUNNING, RoundRecord, StepEntry, read_rounds, round_folder, write_record
from .release import publish
from .settings import LoopSettings

STATUS = {RUNNING: "RUNNING", DONE: "FINISHED", ALARM: "FINISHED"}  # of a run in MLflow; others have FAILED


class LoopTracker:
    """Logs rounds to the tracker of a loop, and goes on where it was down.

    Args:
        settings: Of the loop.
        say: Called with a line where the tracker cannot be reached; once, until it can be again.
    """

    def __init__(self, settings: LoopSettings, say: Callable[[str], None]) -> None:
        self.settings, self.say = settings, say
        self.is_down = False

    def sync(self, patient: bool = False) -> bool:
        """Log what is not logged yet, and register what waits; whether all of it is there now.

        Args:
            patient: Try even where the last attempt has failed; between steps that would cost seconds each.
        """
        if self.is_down and not patient:
            return False
        try:
            for record in read_rounds(self.settings.place):
                if not record.logged:
                    self._log(record)
            self._publish()
        except TrackerError as e:
            if not self.is_down:
                self.say(f"MLflow is not reached: {e} The loop goes on, and logs it later.")
            self.is_down = True
            return False
        self.is_down = False
        return True

    def _log(self, record: RoundRecord) -> None:
        with connect(self.settings.tracker, create=True) as client:
            run_id = record.run_id or self._create(client, record)
            record = self._keep(replace(record, run_id=run_id))
            for entry in record.steps:
                if not entry.run_id:
                    found = self._log_step(entry, run_id)
                    record = self._keep(replace(record, steps=[found if e is entry else e for e in record.steps]))
                    client.set_tag(run_id, f"step.{entry.step}", _describe(found))
            client.set_tag(run_id, "status", record.status)
            if record.words:
                client.set_tag(run_id, "words", record.words[:500])
            if record.status != RUNNING:
                client.log_metric(run_id, "seconds", record.seconds)
                client.set_terminated(run_id, STATUS.get(record.status, "FAILED"))
                self._keep(replace(record, logged=True))

    def _create(self, client: Any, record: RoundRecord) -> str:
        name = f"{self.settings.name} round {record.number}"
        tags = {"kind": "loop", "loop": self.settings.name, "round": str(record.number), "weights": record.weights}
        experiment = experiment_id(client, self.settings.tracker)
        return str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)

    def _log_step(self, entry: StepEntry, run_id: str) -> StepEntry:
        folder = self.settings.place / entry.folder
        return replace(entry, run_id=MlflowTracker(self.settings.tracker).log_folder(folder, run_id).run_id)

    def _keep(self, record: RoundRecord) -> RoundRecord:
        write_record(round_folder(self.settings.place, record.number), record)
        return record

    def _publish(self) -> None:
        """Register the releases that wait."""
        waiting = read_pending(self.settings.place)
        for one in list(waiting):
            version = publish(self.settings, Path(one.release), one.lineage)
            waiting.remove(one)
            write_pending(self.settings.place, waiting)
            self.say(f"models:/{version.name}/{version.number} was registered, as @{self.settings.register.alias}")

    @property
    def shown(self) -> str:
        """Where a person sees the runs."""
        uri = self.settings.tracker
        return display_uri(uri) if uri.startswith("http") else f"mlflow ui --backend-store-uri {display_uri(uri)}"


def _describe(entry: StepEntry) -> str:
    return f"{'run' if entry.new else 'unchanged since run'} {entry.run_id}"
