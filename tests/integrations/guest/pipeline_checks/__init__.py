"""What a diffusers pipeline promises its users, checked bare, with `fixed` and with a policy that skips.

A check is a function of a `Case`: it calls the pipeline, and raises AssertionError where the promise does not hold. The
same check runs in three ways, and what becomes of it must be the same: it passes, or it ends in the same error, or
Skipstone refuses it by a GuestError. Every output under `fixed` is that of the bare pipeline, bit for bit.

Every module of this folder registers its checks when it is imported, and this package imports them all.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

import skipstone
from skipstone.errors import GuestError, GuestWarning
from skipstone.integrations.diffusers.pipeline_specs import find_pipeline_spec
from skipstone.policies.third_order import CHANGE, relative_curvature

from ..families import FAMILIES, build
from ..runs import traces

BATCH, STEPS = 2, 8
NEAR = 1e-4  # relative: what another batch size may change by rounding
SHORTENED = {"strength", "denoising_start"}  # arguments with which a run has fewer steps than were asked for


@dataclass(frozen=True)
class Note:
    """One thing that a check has seen: an output, a sequence of steps, the text of an error.

    With `exact`, no policy may change it: what a copy of the pipeline returns, random numbers, names.
    """

    value: Any
    exact: bool = False


class Case:
    """A new pipeline of a family, as a check sees it: bare, or adapted by `spec`."""

    def __init__(self, name: str, spec: str | None) -> None:
        self.family, self.spec = FAMILIES[name], spec
        self.pipe: Any = build(name)
        self.batch = BATCH
        shortened = SHORTENED & self.family.inputs(self.pipe, BATCH, STEPS).keys()
        self.steps = 2 * STEPS if shortened else STEPS
        self.guest: skipstone.Adapted | None = None
        self.notes: list[Note] = []
        self.saved = 0.0  # largest share of a run's calls that the policy has left out

    @property
    def network(self) -> Any:
        """The denoiser."""
        return denoiser(self.pipe)

    @property
    def parameters(self) -> Sequence[str]:
        """Names of the arguments that the pipeline's call takes."""
        return parameters(self.pipe)

    def inputs(self, **change: Any) -> dict[str, Any]:
        """Arguments of a call, with fresh generators."""
        return {**self.family.inputs(self.pipe, self.batch, self.steps), **change}

    def run(self, **change: Any) -> torch.Tensor:
        """The output of a call, which is noted; torch's own generator is seeded before it."""
        return self.call(self.inputs(**change))

    def call(self, arguments: dict[str, Any]) -> torch.Tensor:
        """The output of a call with exactly these arguments, which is noted."""
        torch.manual_seed(0)
        output = as_tensor(self.pipe(**arguments))
        self.note(output)
        if self.guest is not None:
            last = self.guest.last
            self.saved = max(self.saved, last.saved)
            assert self.spec != "fixed" or last.saved == 0.0 or last.verified, f"fixed saved {last.saved:.3g}"
        return output

    def attempt(self, **change: Any) -> torch.Tensor | None:
        """The output of a call, or None where the pipeline raises an error, whose text is noted."""
        try:
            return self.run(**change)
        except (GuestError, AssertionError):
            raise
        except Exception as e:
            self.note(describe(e), exact=True)
            return None

    def adapt_again(self) -> None:
        """Adapt the pipeline anew, as it is now."""
        if self.guest is not None:
            self.guest.remove()
            self.guest = skipstone.adapt(self.pipe, self.guest.policy)

    def note(self, value: Any, exact: bool = False) -> None:
        """Note something that must be the same in every way of running the check."""
        self.notes.append(Note(value.clone() if isinstance(value, torch.Tensor) else value, exact))

    def decisions(self) -> list[str]:
        """Letters of each sample of the latest run; empty for a bare one."""
        return [sample.decisions for sample in self.guest.last] if self.guest else []


@dataclass(frozen=True)
class Check:
    """A promise of diffusers: how to check it, and which pipelines make it."""

    name: str
    function: Callable[[Case], None]
    applies: Callable[[Any], bool]


CHECKS: dict[str, Check] = {}


def check(
    *takes: str, has: Sequence[str] = (), when: Callable[[Any], bool] = lambda pipe: True
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a check of pipelines whose call takes these arguments, with these attributes, and that fit `when`."""

    def applies(pipe: Any) -> bool:
        known = parameters(pipe)
        return all(t in known for t in takes) and all(getattr(pipe, h, None) is not None for h in has) and when(pipe)

    def add(function: Callable[[Case], None]) -> Callable[[Case], None]:
        CHECKS[function.__name__] = Check(function.__name__, function, applies)
        return function

    return add


@dataclass
class Outcome:
    """What became of a check: the text of the error that ended it, and what it has noted until then."""

    error: str = ""
    refused: bool = False
    notes: list[Note] = field(default_factory=list)
    saved: float = 0.0


def run_check(family: str, name: str, spec: str | None) -> Outcome:
    """Run a check on a new pipeline, bare or adapted, and see that nothing of Skipstone stays on it."""
    case, error, refused = Case(family, spec), "", False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case.guest = None if spec is None else skipstone.adapt(case.pipe, spec)
            CHECKS[name].function(case)
        except Exception as e:
            error, refused = describe(e), isinstance(e, GuestError)
        finally:
            if case.guest is not None:
                case.guest.remove()
    if left := traces(case.pipe, *(part for part in case.pipe.components.values() if part is not None)):
        error = f"left on the pipeline: {', '.join(left)}"
    return Outcome(error, refused, case.notes, case.saved)


def difference(bare: Outcome, other: Outcome, exact: bool) -> str:
    """How a run of a check under a policy differs from the bare one; empty where it does not."""
    if other.error != bare.error:
        return f"bare {bare.error or 'passes'}; adapted {other.error or 'passes'}"
    if len(bare.notes) != len(other.notes):
        return f"{len(bare.notes)} things were seen bare and {len(other.notes)} adapted"
    for i, (a, b) in enumerate(zip(bare.notes, other.notes, strict=True)):
        if said := _difference_of(a.value, b.value, exact or a.exact):
            return f"thing {i + 1} of {len(bare.notes)}: {said}"
    return ""


def _difference_of(bare: Any, other: Any, exact: bool) -> str:
    if not isinstance(bare, torch.Tensor) or not isinstance(other, torch.Tensor):
        return "" if not exact or bare == other else f"bare {bare!r:.300}; adapted {other!r:.300}"
    if (bare.shape, bare.dtype) != (other.shape, other.dtype):
        return f"bare {tuple(bare.shape)} of {bare.dtype}, adapted {tuple(other.shape)} of {other.dtype}"
    if exact and not torch.equal(bare.nan_to_num(), other.nan_to_num()):
        return f"the values differ by up to {(bare.double() - other.double()).abs().max():.3g}"
    if bare.isfinite().all() and not other.isfinite().all():
        return "bare all values are finite, adapted they are not"
    return ""


def compare_check(family: str, name: str) -> dict[str, Any]:
    """What became of a check bare, and how it differs with `fixed` and with `third_order`: texts, empty if well.

    `refused` is what Skipstone's refusal says, where there is one; `saved` the largest share of calls left out.
    """
    bare, fixed = run_check(family, name, None), run_check(family, name, "fixed")
    skips = run_check(family, name, skipping_policy(family))
    return {
        "bare": bare.error,
        "fixed": difference(bare, fixed, exact=True),
        "third_order": difference(bare, skips, exact=False),
        "refused": next((o.error for o in (fixed, skips) if o.refused), ""),
        "saved": skips.saved,
    }


@cache
def skipping_policy(family: str) -> str:
    """`third_order` with a tolerance in the middle of what it measures in this family: it skips, and samples part."""
    case = Case(family, None)
    with skipstone.adapt(case.pipe, "third_order(tol=0)") as guest, warnings.catch_warnings():
        warnings.simplefilter("ignore", GuestWarning)
        case.run()
    changes = [[attempt.signals[CHANGE] for attempt in sample.run.attempts] for sample in guest.last]
    bends = sorted(relative_curvature(d[i - 3 : i]) for d in changes for i in range(4, len(d) - 1))
    middle = len(bends) // 2
    return f"third_order(tol={(bends[middle - 1] * bends[middle]) ** 0.5:.3g}, max_skip=2)"


# -- small helpers of the checks -------------------------------------------------------------------


def parameters(pipe: Any) -> tuple[str, ...]:
    """Names of the arguments that a pipeline's call takes."""
    return tuple(inspect.signature(pipe.__call__).parameters)


def denoiser(pipe: DiffusionPipeline) -> Any:
    """The network of a pipeline that is called in every step, or the first of two."""
    spec = find_pipeline_spec(pipe)
    return spec.models(pipe, spec.denoisers)[0]


def describe(error: Exception) -> str:
    """The type and the first line of an error, without addresses of objects."""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {re.sub(r'0x[0-9a-f]+', '0x', text)}"


def as_tensor(output: Any) -> torch.Tensor:
    """What a pipeline returns first, as a tensor: latents, arrays, pictures, or lists of them."""
    first = output[0] if isinstance(output, tuple) else output
    if isinstance(first, dict):
        first = next(iter(first.values()))
    return _stack(first)


def _stack(value: Any) -> torch.Tensor:
    if isinstance(value, list):
        return torch.stack([_stack(v) for v in value])
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(np.array(value))


def assert_near(a: torch.Tensor, b: torch.Tensor, what: str, gap: float = NEAR) -> None:
    """Equal to a relative distance; bit for bit at 0."""
    assert a.shape == b.shape, f"{what}: {tuple(a.shape)} and {tuple(b.shape)}"
    apart = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12))
    assert apart <= gap, f"{what}: {'more than rounding' if gap else 'not equal'}"


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
