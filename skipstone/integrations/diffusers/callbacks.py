"""Callbacks of a pipeline's call: they run outside of the adapted call, and what they change in it is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .call_context import CURRENT_CALL


def run_outside(callback: Callable[..., Any]) -> Callable[..., Any]:
    """A callback during which other pipelines run as if no call were going on."""

    def call(*args: Any, **kwargs: Any) -> Any:
        token = CURRENT_CALL.set(None)
        try:
            return callback(*args, **kwargs)
        finally:
            CURRENT_CALL.reset(token)

    return call


def watch_changes(
    callback: Callable[..., Any],
    pipe: Any,
    report: Callable[[Sequence[str]], None],
    look: Callable[[], dict[str, Any]] = dict,
) -> Callable[..., Any]:
    """A callback that reports the names of what it changed: its tensors, and guidance and more of the pipeline.

    Args:
        callback: As diffusers calls it; its last argument is a dict of tensors, or the latents.
        pipe: The pipeline that calls it.
        report: Called after each call of the callback that changed something.
        look: Returns what else is to be compared, by name.
    """

    def call(*args: Any) -> Any:
        given = dict(args[-1]) if isinstance(args[-1], dict) else {"latents": args[-1]}
        own = _private_attributes(pipe)
        before = _states(own | given) | look()
        returned = callback(*args)
        replaced = returned if isinstance(returned, dict) else {}
        after = _states(_private_attributes(pipe) | given | replaced) | look()
        if changed := [name for name, state in after.items() if state != before.get(name)]:
            report(changed)
        return returned

    return call


def _private_attributes(pipe: Any) -> dict[str, Any]:
    """Attributes in which a pipeline keeps guidance and more during its call."""
    return {name: value for name, value in vars(pipe).items() if name.startswith("_")}


def _states(values: dict[str, Any]) -> dict[str, Any]:
    """Which object each is, or which number or text, and how often it was written to in place."""
    tensors = {n for n, v in values.items() if isinstance(v, torch.Tensor) and not v.is_inference()}
    plain = {n for n, v in values.items() if isinstance(v, bool | int | float | str)}
    return {n: (v if n in plain else id(v), v._version if n in tensors else 0) for n, v in values.items()}
