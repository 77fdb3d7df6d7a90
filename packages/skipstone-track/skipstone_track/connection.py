"""A connection to MLflow: a database file, or a server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from skipstone.errors import OutputError, SkipstoneError, SpecError
from skipstone.registry import suggest_spelling

DEFAULT_URI = "sqlite:///mlflow.db"  # what `mlflow ui` shows without arguments
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql")
EXPERIMENT = "skipstone"
# A tracker that is down must not hold a command up: MLflow's own defaults wait for minutes. And it prints two lines for
# each run that has ended.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def parse_uri(text: str) -> str:
    """The URI that --track names: "mlflow" is MLFLOW_TRACKING_URI, or sqlite:///mlflow.db in the current folder.

    Raises:
        SpecError: neither "mlflow" nor a URI of a database or server.
    """
    text = text.strip()
    if text == "mlflow":
        return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or DEFAULT_URI
    scheme = text.partition("://")[0].partition("+")[0]
    if "://" in text and scheme in SCHEMES:
        return text
    guess = suggest_spelling(text, ["mlflow"])
    raise SpecError(
        f"--track: expected mlflow, sqlite:///FILE or the URI of an MLflow server (http://HOST:5000), got {text!r}."
        f"{guess}"
    )


def display_uri(uri: str) -> str:
    """The URI without a password."""
    return re.sub(r"://[^/@]*@", "://***@", uri)


class TrackerError(OutputError):
    """MLflow cannot be reached, or refuses a call."""


@contextmanager
def connect(uri: str, create: bool = False) -> Iterator[Any]:
    """An `mlflow.MlflowClient` whose errors are sentences.

    Args:
        uri: Of a database or server.
        create: Make a database file that is not there, as what writes does; MLflow would make it for a question, too.

    Raises:
        TrackerError: a server that does not answer, a database that cannot be opened, or a call that it refuses.
        OutputError: a database that is not there.
    """
    if not create and (file := database_file(uri)) is not None and not file.is_file():
        raise OutputError(f"There is no database {file}: log or register something first, or say --track URI.")
    before = {name: os.environ.get(name) for name in PATIENCE}
    os.environ.update({name: value for name, value in PATIENCE.items() if before[name] is None})
    try:
        import mlflow
        from mlflow.exceptions import MlflowException

        _quiet_logs()
        try:
            yield mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        except SkipstoneError:
            raise
        except MlflowException as e:
            raise TrackerError(f"{display_uri(uri)}: {_first_line(e)}") from e
        except (OSError, ValueError) as e:
            raise TrackerError(f"{display_uri(uri)} cannot be used: {_first_line(e)}") from e
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def database_file(uri: str) -> Path | None:
    """The file of a SQLite database; None of a server."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def experiment_id(client: Any, uri: str) -> str:
    """The id of the experiment that all runs are in, made at the first run; artifacts lie beside a database file."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    file = database_file(uri)
    place = None if file is None else (file.parent / f"{file.stem}-artifacts").as_uri()
    return str(client.create_experiment(EXPERIMENT, artifact_location=place))


def shown_at(uri: str, experiment: str, run_id: str) -> str:
    """Where a person sees a run: a page of the server, or the command that shows a database."""
    if urlsplit(uri).scheme.startswith("http"):
        return f"{display_uri(uri).rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
    return f"mlflow ui --backend-store-uri {display_uri(uri)}"


def _quiet_logs() -> None:
    """MLflow and the tool that makes its tables log every migration."""
    import logging

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _first_line(error: BaseException) -> str:
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return text if len(text) < 300 else f"{text[:300]} ..."
