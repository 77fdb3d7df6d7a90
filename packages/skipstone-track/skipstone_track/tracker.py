"""A folder of results as a run of MLflow."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .connection import connect, experiment_id, parse_uri, shown_at
from .manifest import SUMS_FILE, digest, manifest
from .readers import read_folder
from .record import ChildRun, RunRecord

DIGEST = "skipstone.digest"  # tag: SHA-256 of the folder, so that nothing is logged twice
PARENT = "mlflow.parentRunId"
BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # what MLflow takes in one request
LONGEST = 500  # characters of a parameter
WRITTEN = "%Y-%m-%d %H:%M UTC"  # how folders say when


@dataclass(frozen=True)
class LoggedRun:
    """A run that is in MLflow.

    Args:
        run_id: Its id.
        shown: Where a person sees it.
        new: Whether it was logged now; False where the same folder was logged before.
    """

    run_id: str
    shown: str
    new: bool


class MlflowTracker:
    """Logs folders to MLflow.

    Args:
        target: "mlflow", "sqlite:///FILE" or the URI of a server.

    Raises:
        SpecError: a target that is none.
    """

    def __init__(self, target: str = "mlflow") -> None:
        self.uri = parse_uri(target)

    def log_folder(self, folder: Path, parent: str = "") -> LoggedRun:
        """Log what a command wrote: parameters, metrics by step, prompts, files, and a nested run for each row.

        The same folder is logged once; one whose logging was cut off is logged again.

        Args:
            folder: The --out of a command, or a step of a loop.
            parent: Id of the run that it is nested in; "" for none.

        Raises:
            OutputError: no folder of a command, or an MLflow that cannot be reached.
        """
        record, files = read_folder(folder), manifest(folder)
        tags = {**record.tags, "kind": record.kind, DIGEST: digest(files), "folder": str(folder.resolve())}
        tags |= {PARENT: parent} if parent else {}
        with connect(self.uri, create=True) as client:
            experiment = experiment_id(client, self.uri)
            for run in client.search_runs([experiment], filter_string=f"tags.`{DIGEST}` = '{tags[DIGEST]}'"):
                if run.info.status == "FINISHED":
                    return LoggedRun(run.info.run_id, shown_at(self.uri, experiment, run.info.run_id), False)
                client.delete_run(run.info.run_id)
            run_id = _create(client, experiment, record, tags)
            _log_files(client, run_id, folder, files)
            for child in record.children:
                _log_child(client, experiment, run_id, child)
            client.set_terminated(run_id)
            return LoggedRun(run_id, shown_at(self.uri, experiment, run_id), True)


def _create(client: Any, experiment: str, record: RunRecord, tags: Mapping[str, str]) -> str:
    """The run without its files and children; it counts as running until they are there."""
    start = _milliseconds(record.tags.get("date"))
    run_id = str(client.create_run(experiment, start_time=start, run_name=record.name).info.run_id)
    values = [(name, value, 0) for name, value in record.metrics.items()]
    values += [(name, value, step) for name, points in record.series.items() for step, value in points]
    _log(client, run_id, values, record.params, tags, start)
    _log_prompts(client, run_id, record)
    return run_id


def _milliseconds(date: str | None) -> int:
    """A folder's date since 1970, or now."""
    now = datetime.datetime.now(datetime.UTC)
    try:
        moment = datetime.datetime.strptime(date or "", WRITTEN).replace(tzinfo=datetime.UTC)
    except ValueError:
        moment = now
    return int(1000 * moment.timestamp())


def _log_child(client: Any, experiment: str, parent: str, child: ChildRun) -> None:
    run_id = str(client.create_run(experiment, tags={PARENT: parent}, run_name=child.name).info.run_id)
    now = int(1000 * datetime.datetime.now(datetime.UTC).timestamp())
    _log(client, run_id, [(name, value, 0) for name, value in child.metrics.items()], child.params, {}, now)
    client.set_terminated(run_id)


def _log(
    client: Any,
    run_id: str,
    values: Sequence[tuple[str, float, int]],
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    moment: int,
) -> None:
    """Numbers, settings and tags, in requests of the size that MLflow takes."""
    from mlflow.entities import Metric, Param, RunTag

    wanted = {
        "metrics": [Metric(_key(name), value, moment, step) for name, value, step in values],
        "params": [Param(_key(name), str(value)[:LONGEST]) for name, value in params.items() if value is not None],
        "tags": [RunTag(_key(name), value) for name, value in tags.items()],
    }
    for kind, entities in wanted.items():
        for some in _parts(entities, BATCH[kind]):
            client.log_batch(run_id, **{kind: some})


def _parts(entities: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (entities[first : first + size] for first in range(0, len(entities), size))


def _key(name: str) -> str:
    """A name of the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /:]", "_", name).strip("/") or "_"


def _log_prompts(client: Any, run_id: str, record: RunRecord) -> None:
    """Versions of prompts as the run's inputs."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = [
        DatasetInput(
            Dataset(name=one.name, digest=one.digest[:36], source_type="skipstone", source=one.digest),
            [InputTag("mlflow.data.context", one.context)],
        )
        for one in record.prompts
    ]
    if found:
        client.log_inputs(run_id, datasets=found)


def _log_files(client: Any, run_id: str, folder: Path, files: Mapping[str, str]) -> None:
    client.log_dict(run_id, dict(files), SUMS_FILE)
    for name in files:
        path = Path(name)
        client.log_artifact(run_id, str(folder / path), path.parent.as_posix() if path.parent.name else None)
