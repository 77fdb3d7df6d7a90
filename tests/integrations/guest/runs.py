"""Runs of a tiny Stable Diffusion, bare and adapted, with the rows of its network counted independently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import skipstone
from skipstone.integrations.diffusers.run_stats import RunStats
from skipstone.testing.guest import count_rows

from .families import FAMILIES, build, with_scheduler

BATCH, STEPS = 3, 16
SPECS = ("interval(every=2)", "third_order(tol=0.01)", "error_control(tol=0.1)")  # two of them part the samples' ways


@dataclass
class GuestResult:
    """What an adapted run returned, how it went, and the rows that a forward hook saw enter."""

    output: torch.Tensor
    account: RunStats
    rows: int

    @property
    def decisions(self) -> list[str]:
        """Letters of each sample."""
        return [sample.decisions for sample in self.account]


def tiny_pipeline(scheduler: str = "ddim", family: str = "sd15") -> Any:
    """A new pipeline."""
    return with_scheduler(build(family), scheduler)


def call_inputs(pipe: Any, batch: int = BATCH, steps: int = STEPS, family: str = "sd15", **more: Any) -> dict[str, Any]:
    """Arguments of a call, with fresh generators."""
    return {**FAMILIES[family].inputs(pipe, batch, steps), **more}


def run_bare(pipe: Any, **more: Any) -> torch.Tensor:
    """The output of a call without Skipstone, or of whatever the pipeline is adapted by."""
    return pipe(**call_inputs(pipe, **more)).images


def run_adapted(pipe: Any, spec: Any, **more: Any) -> GuestResult:
    """The output of a call under a policy; its account must agree with the hook."""
    with skipstone.adapt(pipe, spec) as guest, count_rows(pipe) as counter:
        output = run_bare(pipe, **more)
    account = guest.last
    assert counter.rows == sum(s.calls * s.run.branches for s in account)
    assert counter.rows == sum(s.run.cost * s.run.branches for s in account)
    return GuestResult(output, account, counter.rows)


def assert_same_as(pipe: Any, like: Any, gap: float = 0.0, specs: tuple[str, ...] = SPECS, **more: Any) -> None:
    """`fixed` is bit-identical to the bare call of `pipe`, and policies do there what they do in `like`."""
    assert torch.equal(run_adapted(pipe, "fixed", **more).output, run_bare(pipe, **more))
    for spec in specs:
        ours, theirs = run_adapted(pipe, spec, **more), run_adapted(like, spec, **more)
        assert ours.decisions == theirs.decisions
        assert ours.rows == theirs.rows
        assert ours.account.saved > 0
        assert_near(ours.output, theirs.output, gap)


def assert_near(a: torch.Tensor, b: torch.Tensor, gap: float) -> None:
    """Equal to a relative distance; bit for bit at 0."""
    if gap == 0.0:
        assert torch.equal(a, b)
    else:
        assert (a.double() - b.double()).norm() <= gap * b.double().norm()


def traces(*parts: Any) -> list[str]:
    """What the guest has left on these objects or their classes."""
    kinds = [kind for part in parts for kind in type(part).__mro__]
    names = [name for thing in (*kinds, *parts) for name in getattr(thing, "__dict__", {})]
    return [name for name in names if "skipstone" in name]
