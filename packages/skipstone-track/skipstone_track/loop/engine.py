"""The steps of a round as a job of Dagster, in this process: no server, no daemon, and no network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skipstone.satellites import require_module

from .round import Step

HOME = "engine"  # folder, in that of a loop, of Dagster's databases of runs
CONFIG = """\
telemetry: {enabled: false}
compute_logs: {module: dagster._core.storage.noop_compute_log_manager, class: NoOpComputeLogManager}
"""
QUIET: Mapping[str, Any] = {"loggers": {"quiet": {}}}


def run_steps(steps: Sequence[Step], run: Callable[[Step], None], place: Path, name: str) -> None:
    """Run steps one after the other; the first that raises ends it with its own error.

    Args:
        steps: In their order.
        run: Runs one.
        place: The loop's folder, which keeps Dagster's record of the run.
        name: Of the job.

    Raises:
        MissingPackage: Dagster is not installed.
        KeyboardInterrupt: Ctrl-C.
    """
    require_module("dagster", "loop")
    from dagster import DagsterExecutionInterruptedError

    job = _make_job(steps, run, name)
    with _instance(place / HOME) as instance:
        try:
            job.execute_in_process(QUIET, instance=instance)
        except DagsterExecutionInterruptedError:  # what Dagster makes of Ctrl-C inside a step
            raise KeyboardInterrupt from None


def _make_job(steps: Sequence[Step], run: Callable[[Step], None], name: str) -> Any:
    """A job whose ops wait for each other in the order of the steps."""
    import logging

    from dagster import In, Nothing, OpDefinition, Out, graph, logger, op

    def make(step: Step) -> OpDefinition:
        def body() -> None:
            run(step)

        found: OpDefinition = op(name=step.name, ins={"before": In(Nothing)}, out=Out(Nothing))(body)
        return found

    def compose() -> None:
        done: Any = None
        for step in steps:
            done = make(step)() if done is None else make(step)(before=done)

    def quiet(_: Any) -> logging.Logger:
        return logging.Logger("quiet", logging.CRITICAL + 1)

    made = graph(name=f"loop_{name.replace('-', '_')}")(compose)
    return made.to_job(logger_defs={"quiet": logger(quiet)})


@contextmanager
def _instance(home: Path) -> Any:
    """Dagster's record of runs in a folder, quiet, and with its telemetry off."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text(CONFIG, encoding="utf-8")
    before = os.environ.get("DAGSTER_HOME")
    os.environ["DAGSTER_HOME"] = str(home.resolve())
    try:
        from dagster import DagsterInstance

        with DagsterInstance.from_config(str(home.resolve())) as instance:
            yield instance
    finally:
        if before is None:
            del os.environ["DAGSTER_HOME"]
        else:
            os.environ["DAGSTER_HOME"] = before
