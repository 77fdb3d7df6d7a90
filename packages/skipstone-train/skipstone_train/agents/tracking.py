"""Where the figures of a training go while it runs: TensorBoard, MLflow, Weights & Biases, or nowhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from skipstone.errors import SpecError
from skipstone.registry import suggest_spelling


class Tracker(Protocol):
    """Is told figures by name, at a number of environment steps."""

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class NullTracker:
    """Tells nobody."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class TensorBoard:
    """Event files in a folder: `tensorboard --logdir FOLDER` shows them."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise SpecError(_missing("tensorboard", "tensorboard")) from None
        self._writer: Any = SummaryWriter(str(folder / "tensorboard" / run))
        text = "\n".join(f"    {name}: {value}" for name, value in flatten_settings(settings).items())
        self._writer.add_text("settings", text)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run of MLflow, where its own variables (MLFLOW_TRACKING_URI, ...) say."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        try:
            import mlflow
        except ImportError:
            raise SpecError(_missing("mlflow", "mlflow")) from None
        self._mlflow: Any = mlflow
        mlflow.start_run(run_name=run)
        mlflow.log_params(flatten_settings(settings))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(_finite(figures), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class WandB:
    """A run of Weights & Biases, where its own variables (WANDB_PROJECT, ...) say."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise SpecError(_missing("wandb", "wandb")) from None
        self._run: Any = wandb.init(name=run, dir=str(folder), config=dict(settings))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(_finite(figures)), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "none": lambda folder, run, settings: NullTracker(),
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def tracker(name: str, folder: Path, run: str, settings: Mapping[str, Any]) -> Tracker:
    """The tracker of a name.

    Args:
        name: Out of `TRACKERS`.
        folder: Of the training.
        run: What the tracker calls it.
        settings: Noted beside.

    Raises:
        SpecError: no such tracker, or what it needs is not installed.
    """
    if name not in TRACKERS:
        raise SpecError(
            f"No tracker is called {name!r}.{suggest_spelling(name, list(TRACKERS))} Known: {', '.join(TRACKERS)}."
        )
    return TRACKERS[name](folder, run, settings)


def flatten_settings(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings as one level: {"learner": {"rate": 1}} -> {"learner.rate": 1}."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = f"{path}.{name}" if path else name
        found |= flatten_settings(value, inner) if isinstance(value, Mapping) else {inner: value}
    return found


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _missing(name: str, package: str) -> str:
    return f"tracking: {name} is not installed. Type: pip install {package}, or say tracking=none."
