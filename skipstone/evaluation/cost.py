"""Cost of a sample: rows of each guidance branch, multiply-accumulates, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..engine.contracts import UNCOND, Cached, Draft
from ..integrations.diffusers.batch_router import find_batch
from ..integrations.torch import CallCounter
from .columns import Column
from .subject import GeneratedSample, SampleRequest, Subject, local_model

BACKWARD_COST = (
    2.0  # forwards that a backward pass is charged as: the convention for gradients of activations and weights
)


class BackwardCallCounter(CallCounter):
    """Rows that enter a network, each row of a backward pass through it charged as BACKWARD of them.

    A backward pass is one that comes back to the sample that the network was given.
    """

    backward = 0  # rows of backward passes

    def __enter__(self) -> BackwardCallCounter:
        super().__enter__()
        return self

    def _count(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._count(module, args, kwargs)
        sample = find_batch(module, args, kwargs)
        if sample.requires_grad:
            _on_gradient(sample, lambda: self._back(len(sample)))

    def _back(self, rows: int) -> None:
        self.backward += rows

    @property
    def charged_rows(self) -> float:
        """Rows of forwards, and those of backward passes charged as forwards."""
        return self.rows + BACKWARD_COST * self.backward


@dataclass
class MacsMeter:
    """Multiply-accumulates of the denoisers' forwards so far; rows that entered them."""

    macs: float = 0.0
    rows: int = 0


@contextmanager
def count_macs(denoisers: Sequence[Any]) -> Iterator[MacsMeter]:
    """Count the multiply-accumulates of networks within the block, whoever calls them.

    By torch's own counter of floating-point operations, two of which are one multiply-accumulate: matrix products,
    convolutions and attention, which on a CPU is a kernel that is given to the counter here. Norms and activations
    are not counted, as everywhere. A backward pass is charged as BACKWARD of its forward, whatever it computes of it.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    meter, modes = MacsMeter(), list[Any]()

    def begin(*_: Any) -> None:
        mode = FlopCounterMode(display=False, custom_mapping={attention: _attention_flops})
        mode.mod_tracker = _NoModuleTracker()  # type: ignore[assignment]  # see there
        modes.append(mode)
        mode.__enter__()  # type: ignore[no-untyped-call]

    def charge(macs: float) -> None:
        meter.macs += macs

    def end(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        mode = modes.pop()
        mode.__exit__(None, None, None)
        macs = mode.get_total_flops() / 2
        charge(macs)
        sample = find_batch(module, args, kwargs)
        if sample.requires_grad:
            _on_gradient(sample, lambda: charge(BACKWARD_COST * macs))

    with ExitStack() as stack:
        counters = [stack.enter_context(CallCounter(network)) for network in denoisers]
        for network in denoisers:
            stack.callback(network.register_forward_pre_hook(begin).remove)
            stack.callback(network.register_forward_hook(end, always_call=True, with_kwargs=True).remove)
        yield meter
    meter.rows = sum(counter.rows for counter in counters)


def _on_gradient(sample: Any, callback: Callable[[], None]) -> None:
    """Call `callback` when a gradient reaches the sample."""
    sample.register_hook(lambda gradient: callback())


class _NoModuleTracker:
    """Replaces torch's module tracker, which recurses forever when a peer's modules contain themselves."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return the FLOPs of one attention, from the shapes of its arguments."""
    from torch.utils.flop_counter import sdpa_flop_count

    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def measure_row_macs(subject: Subject, item: SampleRequest, full: Column, steps: int) -> float:
    """Multiply-accumulates of one row: each row of a full run costs the same.

    1 where the denoisers are no torch modules, whose operations torch counts: then rows stand for them.
    """
    subject = local_model(subject)
    if not all(hasattr(network, "register_forward_hook") for network in subject.denoisers):
        return 1.0
    with count_macs(subject.denoisers) as meter:
        subject.draw([item], replace(full, steps=min(steps, full.steps)))
    return meter.macs / meter.rows


def split_branch_rows(generated: GeneratedSample) -> tuple[float, float]:
    """Rows of the conditional and of the unconditional branch; a peer's, and rows of other guidance, in equal parts."""
    rows = generated.calls * generated.branches
    if generated.branches == 1:
        return rows, 0.0
    if generated.run is None:
        return rows / generated.branches, rows - rows / generated.branches
    whole = rows / generated.branches
    for attempt in generated.run.attempts:
        how = attempt.plan.evaluate
        rows_of_cond = isinstance(how, Draft) or (isinstance(how, Cached) and UNCOND in how.sites)
        if rows_of_cond:  # these rows were all of the conditional branch
            whole += attempt.cost * (generated.branches - 1)
    return whole, rows - whole


class PeakMemory:
    """Largest memory allocated on a GPU, or by MLX, since `begin`; None for torch on a CPU, which does not count it."""

    def __init__(self, denoisers: Sequence[Any]) -> None:
        torch_denoisers = [network for network in denoisers if hasattr(network, "register_forward_hook")]
        self.others = [network for network in denoisers if hasattr(network, "peak_memory")]
        devices = {p.device for network in torch_denoisers for p in network.parameters()}
        self.devices = [device for device in devices if device.type == "cuda"]

    def begin(self) -> None:
        """Reset the peak."""
        import torch

        for device in self.devices:
            torch.cuda.reset_peak_memory_stats(device)
        for network in self.others:
            network.reset_peak_memory()

    def bytes(self) -> int | None:
        """The peak, None without a GPU."""
        import torch

        if self.others:
            return int(self.others[0].peak_memory())
        if not self.devices:
            return None
        return sum(torch.cuda.max_memory_allocated(device) for device in self.devices)
