"""`--track`: a command's folder, logged when the command has finished, by a tracker that a package brings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingPackage, SkipstoneError
from ..satellites import install_hint, list_entry_points
from .options import TrackOption

if TYPE_CHECKING:
    from rich.console import Console

REGISTERED = "models:/"  # how MLflow spells a version that is registered


def tracked(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with --track: its --out is logged when it has finished. The tracker is checked before it begins."""

    @functools.wraps(command)
    def tracking(*, track: str, **given: Any) -> Any:
        from rich.console import Console

        tracker = open_tracker(track)
        result = command(**given)
        log_folder(tracker, Path(given["out"]), Console(stderr=True), track)
        return result

    parameters = inspect.signature(command).parameters.values()
    option = inspect.Parameter("track", inspect.Parameter.KEYWORD_ONLY, default="", annotation=TrackOption)
    setattr(tracking, "__signature__", inspect.Signature([*parameters, option]))  # noqa: B010  (where Typer looks)
    tracking.__annotations__ = {**command.__annotations__, "track": TrackOption}
    return tracking


def open_tracker(target: str) -> Any:
    """The tracker of --track, None where nothing was asked for. Called before a command's work.

    Raises:
        MissingPackage: no package brings a tracker.
        SpecError: neither the name nor the URI of one.
    """
    return _tracking("mlflow").load()(target) if target else None


def log_folder(tracker: Any, folder: Path, console: Console, target: str) -> None:
    """Log a folder of results; where the tracker fails, the results stay and the command that logs them is said."""
    if tracker is None:
        return
    try:
        with console.status("Logging ..."):
            logged = tracker.log_folder(folder)
    except SkipstoneError as e:
        later = f"The results are in {folder}. Log them later: skipstone runs upload {folder} --track {target}"
        console.print(f"Not logged. {e} {later}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        return
    console.print(f"Logged as {logged.run_id}: {logged.shown}", markup=False, highlight=False, soft_wrap=True)


def fetch_registered(word: str) -> str:
    """A word of a command line in which models:/NAME@ALIAS has become the folder of that version.

    Raises:
        MissingPackage: no package brings a registry.
        SkipstoneError: nothing is registered so, or its files were changed.
    """
    before, scheme, after = word.partition(REGISTERED)
    if not scheme or (before and not before.endswith("=")):
        return word
    fetch: Callable[[str], Path] = _tracking("registry").load()
    return f"{before}{fetch(scheme + after)}"


def _tracking(name: str) -> Any:
    for point in list_entry_points("trackers"):
        if point.name == name:
            return point
    raise MissingPackage(f"Tracking {install_hint('tracker', 'mlflow')}.")
