"""A denoiser of MLX: how its network is called, how often, and whether it is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx

from .compiled import compile_denoiser
from .layers import slice_attention

# (network, x (N, height, width, channels), timesteps (N,), condition with a batch axis) -> an array like x
NetworkCall: TypeAlias = Callable[[Any, mx.array, mx.array, Mapping[str, mx.array]], mx.array]


@dataclass
class CallCount:
    """What entered a denoiser.

    Args:
        rows: Samples and branches.
        forwards: Batches of them.
    """

    rows: int = 0
    forwards: int = 0


class Denoiser:
    """A network, called on batches of latents; what enters is counted, not what its users say that they called.

        with denoiser.count() as counted:
            ...
        print(counted.rows / branches)  # calls

    Args:
        load: Gives the network, a module of `mlx.nn`; called for every forward.
        call: How the network is called.
        dtype: In which it computes; latents and conditions are cast to it, timesteps stay float32.
        compiled: Whether the call is compiled, once for each shape of a batch; None compiles on a GPU.
        max_rows: Rows that enter the network at once; 0 is all.
        query_rows: Rows of attention that are computed at once; 0 is all.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        call: NetworkCall,
        dtype: mx.Dtype = mx.float32,
        compiled: bool | None = None,
        max_rows: int = 0,
        query_rows: int = 0,
    ) -> None:
        self._load, self.call, self.mlx_dtype = load, call, dtype
        self.compiled = mx.metal.is_available() if compiled is None else compiled
        self.max_rows, self.query_rows = max_rows, query_rows
        self._counts: list[CallCount] = []
        self._compiled: Any = None

    @property
    def network(self) -> Any:
        """The network."""
        return self._load()

    def release(self) -> None:
        """Forget what was compiled, which holds the network: it will be another."""
        self._compiled = None

    @property
    def compilations(self) -> int:
        """How often the present network was compiled."""
        return 0 if self._compiled is None else int(self._compiled.compilations)

    @property
    def dtype(self) -> str:
        """Name of the dtype in which it computes."""
        return str(self.mlx_dtype).removeprefix("mlx.core.")

    @property
    def device(self) -> str:
        """What it runs on: 'mlx gpu' or 'mlx cpu'."""
        return f"mlx {mx.default_device().type.name}"

    def peak_memory(self) -> int:
        """Bytes that MLX has held at most since `reset_peak_memory`."""
        return int(mx.get_peak_memory())

    def reset_peak_memory(self) -> None:
        """Begin to measure anew."""
        mx.reset_peak_memory()

    def __call__(self, x: mx.array, timesteps: mx.array, condition: Mapping[str, mx.array]) -> mx.array:
        """The output for x (N, height, width, channels), timesteps (N,) and conditions of N rows, in x's dtype."""
        for count in self._counts:
            count.rows += x.shape[0]
            count.forwards += 1
        network = self._load()  # which may free what was compiled before
        if self.compiled:
            if self._compiled is None or self._compiled.module is not network:
                self._compiled = compile_denoiser(network)
            network = self._compiled
        cast = {name: value.astype(self.mlx_dtype) for name, value in condition.items()}
        rows, most = x.shape[0], self.max_rows or x.shape[0]
        outputs = []
        for first in range(0, rows, most):
            some = slice(first, first + most)
            few = {name: value[some] for name, value in cast.items()}
            with slice_attention(self.query_rows):
                output = self.call(network, x[some].astype(self.mlx_dtype), timesteps[some], few)
            outputs.append(output.astype(x.dtype))
            if most < rows:
                mx.eval(outputs[-1])  # or all of them would be in memory at once
        return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs)

    @contextmanager
    def count(self) -> Iterator[CallCount]:
        """Count what enters inside the block."""
        counted = CallCount()
        self._counts.append(counted)
        try:
            yield counted
        finally:
            self._counts.remove(counted)
