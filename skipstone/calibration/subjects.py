"""Convert what a user passes to `calibrate` into a comparison's subject."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SpecError
from ..evaluation.checkpoints import Checkpoint, LoadedPipeline
from ..evaluation.engine_subject import EngineSubject
from ..evaluation.models import find_model_package
from ..evaluation.pipeline_subject import PipelineSubject
from ..evaluation.subject import Subject


def make_subject(pipe: Any, guidance: float | None = None, arguments: Mapping[str, Any] | None = None) -> Subject:
    """A pipeline, a loaded model such as a Pebble, or the name, folder or hub id of a model.

    Raises:
        SpecError: arguments for a model that takes none.
        GuestError, ModelError: something else, or nothing.
    """
    if isinstance(pipe, str | os.PathLike):
        name = os.fspath(pipe)
        if find_model_package(name) is None:
            return PipelineSubject(Checkpoint.find(name), guidance, dict(arguments or {}))
        engine = EngineSubject(name, Path(name).name, guidance)
    elif find_model_package(pipe) is not None:
        engine = EngineSubject.from_loaded(pipe if guidance is None else pipe.guided(guidance))
    else:
        return PipelineSubject(LoadedPipeline.from_loaded(pipe), guidance, dict(arguments or {}))
    if arguments:
        raise SpecError(f"{engine.name} runs in the engine, whose runs take no arguments: got {', '.join(arguments)}.")
    return engine
