"""Denoisers compiled by `mx.compile`: once for each set of shapes, and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from .layers import attention_rows


class CompiledDenoiser:
    """A network that `mx.compile` has compiled, called as the network is.

    It is compiled once for each set of shapes and types of its arguments. Numbers become arrays, so that another
    timestep compiles nothing. Weights are read at each call: a LoRA that is merged later has its effect.

    Args:
        module: A network.

    Attributes:
        compilations: How often it was compiled.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.compilations = module, 0
        self._functions: dict[int, Callable[..., Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the network."""
        rows = attention_rows()  # a trace has the slices that it was made with
        if rows not in self._functions:
            self._functions[rows] = mx.compile(self._trace, inputs=self.module.state)
        given = {name: to_array(value) for name, value in kwargs.items() if value is not None}
        return self._functions[rows](*map(to_array, args), **given)

    def __getattr__(self, name: str) -> Any:
        """Anything else is that of the network: its configuration, its report."""
        return getattr(self.module, name)

    def _trace(self, *args: Any, **kwargs: Any) -> Any:
        """Runs where `mx.compile` compiles, and at no other call."""
        self.compilations += 1
        return self.module(*args, **kwargs)


def compile_denoiser(module: Any) -> CompiledDenoiser:
    """A network compiled by `mx.compile`, which counts its compilations."""
    return CompiledDenoiser(module)


def to_array(value: Any) -> Any:
    """A number as an array of float32; anything else as it is."""
    return mx.array(value, dtype=mx.float32) if isinstance(value, int | float) else value
