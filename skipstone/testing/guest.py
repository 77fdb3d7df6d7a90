"""Conformance checks of pipelines and schedulers: what must hold for a family to count as supported.

@pytest.mark.parametrize("check", guest_checks(make, inputs, samples), ids=check_id)
def test_my_pipeline(check):
    check()
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch

from ..deprecation import old_names
from ..engine.contracts import Plan, Policy, Run
from ..engine.flow import FREEZE
from ..integrations.diffusers.guest import Adapted, adapt
from ..integrations.diffusers.pipeline_specs import find_pipeline_spec
from ..integrations.diffusers.rows import BatchLayout
from ..integrations.diffusers.scheduler_specs import Trajectory, trajectory
from ..integrations.torch import CallCounter
from .policies import Check

MIN_STEPS = 6  # steps: `third_order` calls the first four and the last
BATCH_TOLERANCE = 1e-4  # relative: what a smaller batch may change by rounding


@dataclass(frozen=True)
class FreezeAt(Policy):
    """Freeze one sample of the batch, or all, after so many steps."""

    steps: int
    only: int | None = None
    name: ClassVar[str] = "freeze_at"
    scope: ClassVar[Literal["sample", "batch"]] = "batch"

    def plan_batch(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        def planned(i: int, run: Run, proposal: Plan) -> Plan:
            due = len(run.accepted_attempts) == self.steps and self.only in (None, i)
            return replace(proposal, evaluate=FREEZE, t_next=run.t_end) if due else proposal

        return [planned(i, r, p) for i, (r, p) in enumerate(zip(runs, proposals, strict=True))]


@dataclass
class Recording:
    """Record of a bare run: the requests to its scheduler, and what entered its network."""

    output: Any = None
    calls: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # (model output, sample)
    trajectory: Trajectory | None = None
    rows: int = 0
    forwards: int = 0


@dataclass(frozen=True)
class GuestSetup:
    """A pipeline and how it is called.

    Args:
        make: Builds it; the same weights every time.
        inputs: (pipe, samples, steps) -> arguments of its call, with seeded generators made anew.
        after: What the pipeline returns -> a tensor whose first axis is the samples.
        samples: In the batch, at least 2.
        steps: Of a run.
    """

    make: Callable[[], Any]
    inputs: Callable[[Any, int, int], dict[str, Any]]
    after: Callable[[Any], torch.Tensor]
    samples: int = 2
    steps: int = 8

    def ready(self) -> tuple[GuestSetup, Any, Recording]:
        """A pipeline and its bare run, of so many steps that policies find something to skip: some start late."""
        pipe = self.make()
        bare = self.bare(pipe)
        assert bare.trajectory is not None
        if len(bare.trajectory.stages) >= MIN_STEPS or self.steps > 64:
            return self, pipe, bare
        return replace(self, steps=2 * self.steps).ready()

    def call(self, pipe: Any, samples: int | None = None) -> torch.Tensor:
        """Call the pipeline, with torch's own generator seeded too: some schedulers draw from it."""
        torch.manual_seed(0)
        return self.after(pipe(**self.inputs(pipe, samples or self.samples, self.steps)))

    def bare(self, pipe: Any, last: dict[int, Any] | None = None) -> Recording:
        """One run without Skipstone; `last` overwrites samples (by row) in what the last step returns."""
        seen, inner = Recording(), pipe.scheduler.step
        signature = inspect.signature(inner)

        @functools.wraps(inner)  # pipelines look at the signature
        def step(*args: Any, **kwargs: Any) -> Any:
            asked = signature.bind(*args, **kwargs).arguments
            if seen.trajectory is None:
                ahead = getattr(pipe, "_num_timesteps", None)
                seen.trajectory = trajectory(pipe.scheduler, asked["timestep"], ahead)
            seen.calls.append((asked["model_output"].clone(), asked["sample"].clone()))
            made = inner(*args, **kwargs)
            ends = len(seen.calls) == len(seen.trajectory.calls)
            return _overwrite_rows(made, last) if ends and last else made

        pipe.__dict__.pop("_num_timesteps", None)
        pipe.scheduler.step = step
        with count_rows(pipe) as counter:
            try:
                seen.output = self.call(pipe)
            finally:
                del pipe.scheduler.step
        seen.rows, seen.forwards = counter.rows, counter.forwards
        return seen

    def adapted(self, pipe: Any, policy: Policy | str, samples: int | None = None) -> tuple[Any, Adapted, CallCounter]:
        """One run under a policy."""
        with adapt(pipe, policy) as guest, count_rows(pipe) as counter:
            output = self.call(pipe, samples)
        return output, guest, counter


def count_rows(pipe: Any) -> CallCounter:
    """Counts the rows that enter the denoisers of a pipeline, by hooks that know nothing of the guest."""
    spec = find_pipeline_spec(pipe)
    return CallCounter(*spec.models(pipe, spec.denoisers))


def fixed_changes_nothing(setup: GuestSetup) -> None:
    """`fixed` is bit-identical to the bare pipeline, makes its calls, and leaves its classes as they were."""
    setup, pipe, bare = setup.ready()
    before = [
        type(c)
        for c in (pipe, pipe.scheduler, *find_pipeline_spec(pipe).models(pipe, find_pipeline_spec(pipe).denoisers))
    ]
    output, guest, counter = setup.adapted(pipe, "fixed")
    after = [
        type(c)
        for c in (pipe, pipe.scheduler, *find_pipeline_spec(pipe).models(pipe, find_pipeline_spec(pipe).denoisers))
    ]
    assert torch.equal(output, bare.output), (
        f"fixed changed the result by {_relative_difference(output, bare.output):.3g}"
    )
    entered = counter.rows - guest.last.verified
    assert entered == bare.rows, f"fixed entered {entered} rows, the bare run {bare.rows}"
    assert guest.last.saved == 0.0 or guest.last.verified
    assert before == after, "the pipeline's classes were not restored"


def skips_as_planned(setup: GuestSetup) -> None:
    """Skipping policies enter exactly the rows that they planned, fewer than the bare run."""
    setup, pipe, bare = setup.ready()
    for spec in ("interval(every=2, warmup=2, tail=1)", "third_order(tol=1e3, max_skip=1)"):
        output, guest, counter = setup.adapted(pipe, spec)
        assert torch.isfinite(output.float()).all(), f"{spec}: the result is not finite"
        entered, planned = counter.rows - guest.last.verified, sum(s.run.cost * s.run.branches for s in guest.last)
        assert abs(entered - planned) < 1e-6, f"{spec}: {entered} rows entered, {planned:g} were planned"
        assert entered < bare.rows, f"{spec} saved nothing: {guest.last.summary()}"


def frozen_row_lands(setup: GuestSetup) -> None:
    """A sample frozen at half lands on its clean estimate of then; the others go on as in the bare run."""
    setup, pipe, bare = setup.ready()
    assert bare.trajectory is not None
    half = max(1, len(bare.trajectory.stages) // 2)
    k = sum(bare.trajectory.stages[:half]) - 1  # the last call before the decision
    layout = layout_of(pipe, bare, setup.samples)
    x0 = bare.trajectory.x0(k, *(layout.take(t, 0) for t in bare.calls[k]))
    rows = {c * layout.samples * layout.width: x0 for c in range(layout.copies)}
    expected = setup.bare(pipe, {r: v if layout.width > 1 else v[None] for r, v in rows.items()}).output
    output, guest, _ = setup.adapted(pipe, FreezeAt(half, 0))
    assert guest.last[0].calls < guest.last[1].calls
    gap = _relative_difference(output[:1], expected[:1])
    assert gap <= 1e-6, f"the frozen sample is {gap:.2g} (relative) from its clean estimate"
    gap = _relative_difference(output[1:], bare.output[1:])
    assert gap <= BATCH_TOLERANCE, f"the other samples differ by {gap:.2g} (relative) from the bare run"


def gate_halves_calls(setup: GuestSetup) -> None:
    """With two guidance branches, leaving one out at every step after the first costs half a call a step."""
    setup, pipe, bare = setup.ready()
    output, guest, counter = setup.adapted(pipe, "guidance_gate(below=1.0)")
    assert torch.isfinite(output.float()).all()
    planned = sum(s.run.cost * s.run.branches for s in guest.last)
    assert abs(counter.rows - guest.last.verified - planned) < 1e-6
    gated = all(set(s.decisions) == {"C", "c"} for s in guest.last)
    can = guest.last[0].run.branches == len(find_pipeline_spec(pipe).branches) == 2
    assert gated == can, f"{guest.last[0].run.branches} branches: {guest.last.summary()}"
    assert (planned < bare.rows) == gated


def samples_stand_alone(setup: GuestSetup) -> None:
    """The first sample's decisions and result do not depend on the others in its batch."""
    pipe = setup.make()
    spec = "third_order(tol=0.2, max_skip=1)"
    if _relative_difference(setup.call(pipe)[:1], setup.call(pipe, 1)) > BATCH_TOLERANCE:
        return  # the bare pipeline draws noise for the batch as a whole: no sample of it stands alone
    together, guest, _ = setup.adapted(pipe, spec)
    decisions = guest.last[0].decisions
    alone, guest, _ = setup.adapted(pipe, spec, samples=1)
    assert guest.last[0].decisions == decisions
    assert _relative_difference(together[:1], alone[:1]) <= BATCH_TOLERANCE


CHECKS = (fixed_changes_nothing, skips_as_planned, frozen_row_lands, gate_halves_calls, samples_stand_alone)


def guest_checks(setup: GuestSetup) -> Iterator[Check]:
    """Every check of a family, as functions without arguments that raise AssertionError."""
    for check in CHECKS:
        yield partial(check, setup)


def layout_of(pipe: Any, bare: Recording, samples: int) -> BatchLayout:
    """Which rows of the scheduler's batch are whose, known from the number of samples."""
    rows, spec = bare.calls[0][1].shape[0], find_pipeline_spec(pipe)
    copies = 2 if spec.doubled and rows == 2 * samples else 1
    return BatchLayout(samples, rows // samples // copies, copies)


def _overwrite_rows(made: Any, rows: dict[int, Any] | None) -> Any:
    """Return the output of `step` with these rows overwritten, in the sample and in the clean estimate."""
    values = list(made) if isinstance(made, tuple) else [made.prev_sample, getattr(made, "pred_original_sample", None)]
    for i, value in enumerate(values[:2]):
        if isinstance(value, torch.Tensor) and value.shape == values[0].shape:
            values[i] = value.clone()
            for first, new in (rows or {}).items():
                values[i][first : first + new.shape[0]] = new
    if isinstance(made, tuple):
        return tuple(values)
    fields = {"prev_sample": values[0]} | ({"pred_original_sample": values[1]} if values[1] is not None else {})
    return type(made)(**{**made, **fields})


def _relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative distance of two results."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12))


__getattr__ = old_names(__name__, {"Counter": "count_rows"})
