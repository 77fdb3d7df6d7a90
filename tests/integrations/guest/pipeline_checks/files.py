"""Files, copies, siblings, and what a pipeline tells of itself."""

from __future__ import annotations

import copy
import inspect
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from . import Case, as_tensor, assert_near, check


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _run_bare(case: Case, pipe: Any) -> None:
    """Note what another pipeline returns: no policy may change it."""
    torch.manual_seed(0)
    case.note(as_tensor(pipe(**case.inputs())), exact=True)


@check()
def saved_and_loaded(case: Case) -> None:
    """Saved while adapted, it loads as what it was, and the adapted one goes on."""
    before = case.run()
    with tempfile.TemporaryDirectory() as folder:
        case.pipe.save_pretrained(folder)
        case.note(json.loads(Path(folder, "model_index.json").read_text()), exact=True)
        case.note(sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*")), exact=True)
        absent = {name: None for name, part in case.pipe.components.items() if part is None}
        loaded = _quiet(type(case.pipe).from_pretrained(folder, **absent))
        case.note(type(loaded).__mro__[0].__name__, exact=True)
        _run_bare(case, loaded)
    assert_near(case.run(), before, "after saving", gap=0)


@check()
def copied(case: Case) -> None:
    """A deep copy is bare, and the adapted one goes on."""
    before = case.run()
    _run_bare(case, copy.deepcopy(case.pipe))
    assert_near(case.run(), before, "after copying", gap=0)


@check()
def another_pipeline_of_the_same_parts(case: Case) -> None:
    """`from_pipe` of an adapted pipeline is bare, and the adapted one goes on."""
    before = case.run()
    other = _quiet(type(case.pipe).from_pipe(case.pipe))
    _run_bare(case, other)
    assert_near(case.run(), before, "after the other one", gap=0)


@check()
def what_it_tells_of_itself(case: Case) -> None:
    """Its signature, names, configuration, floats and parts are those of the bare pipeline."""
    pipe = case.pipe
    case.note(str(inspect.signature(pipe.__call__)), exact=True)
    case.note((type(pipe).__name__, type(pipe).__module__, repr(pipe)), exact=True)
    case.note({key: str(value) for key, value in pipe.config.items() if not key.startswith("_")}, exact=True)
    case.note((str(pipe.dtype), str(pipe.device), sorted(pipe.components)), exact=True)
    case.note(sorted({type(part).__name__ for part in pipe.components.values()}), exact=True)
    case.run()
    case.note(sorted(vars(pipe)), exact=True)
    case.note({name: type(value).__name__ for name, value in sorted(vars(pipe.scheduler).items())}, exact=True)
