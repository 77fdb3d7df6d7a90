"""Where the figures of a training go while it runs: TensorBoard, or nowhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from skipstone.errors import SpecError
from skipstone.registry import suggest_spelling


class Tracker(Protocol):
    """Takes figures by name, at a number of environment steps."""

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class NullTracker:
    """Takes figures and does nothing with them."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoard:
    """Event files in a folder: `tensorboard --logdir FOLDER` shows them."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise SpecError(
                "tracking: tensorboard is not installed. Type: pip install tensorboard, or say tracking=none."
            ) from None
        self._writer: Any = SummaryWriter(str(folder / "tensorboard" / run))
        text = "\n".join(f"    {name}: {value}" for name, value in flatten_settings(settings).items())
        self._writer.add_text("settings", text)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "none": lambda folder, run, settings: NullTracker(),
    "tensorboard": TensorBoard,
}


def check_tracker(name: str) -> None:
    """Raise SpecError for a tracker that there is not."""
    if name in ("mlflow", "wandb"):
        raise SpecError(f"tracking: expected tensorboard or none, got {name}. For MLflow say --track mlflow.")
    if name not in TRACKERS:
        guess = suggest_spelling(name, list(TRACKERS))
        raise SpecError(f"tracking: no tracker is called {name!r}.{guess} Known: {', '.join(TRACKERS)}.")


def make_tracker(name: str, folder: Path, run: str, settings: Mapping[str, Any]) -> Tracker:
    """The tracker of a name.

    Args:
        name: Out of `TRACKERS`.
        folder: Of the training.
        run: What the tracker calls it.
        settings: Noted beside.

    Raises:
        SpecError: no such tracker, or what it needs is not installed.
    """
    check_tracker(name)
    return TRACKERS[name](folder, run, settings)


def flatten_settings(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings as one level: {"learner": {"rate": 1}} -> {"learner.rate": 1}."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = f"{path}.{name}" if path else name
        found |= flatten_settings(value, inner) if isinstance(value, Mapping) else {inner: value}
    return found
