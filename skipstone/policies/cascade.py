"""A student draws; where its estimate has not settled, the model draws anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from .. import registry
from ..engine.contracts import Draft, Plan, Policy, Run
from ..errors import SpecError
from ..registry import register
from ..settings import Ranges, check_settings, shorten
from .student import Student, StudentCard

CHANGE = "draft_change"  # the signal that decides
# From careful to bold. Of 1,024 training prompts that Pebble's student had not seen, a tenth moves less than 0.25, half
# less than 0.33, nine tenths less than 0.41; the wider ones are for latents of other scales.
LIMITS = (0.1, 0.15, 0.2, 0.23, 0.26, 0.29, 0.32, 0.35, 0.38, 0.42, 0.5, 0.7, 1.0, 1.5)
DEFAULT_LIMIT = 0.33


@register("policy")
@dataclass(frozen=True)
class Cascade(Policy):
    """Keep a student's picture where its estimate has settled; else draw anew with the model, under `then`.

    A student (`skipstone distill`) draws first, for half a guided call a step. Its picture is kept if its clean
    estimate moved at most `limit` between its first and its last step: rms(x0_last - x0_first), in units of the latent.
    Each sample of a batch goes its own way; what the student has cost counts.

    Args:
        path: Folder of `skipstone distill`, or the name of a shipped student, of two steps or more. "" changes nothing.
        limit: Largest change at which the picture is kept, in [0, 1000]; 0 keeps none. None is 0.33, and
            `skipstone calibrate` chooses it.
        steps: Of the student, a multiple of those that it was trained for, in 0..64; 0 is as many.
        then: Spec of the policy of the model.

    Raises:
        SpecError: a setting out of range, a student of one step, or a `then` that runs a student itself.
        ModelError: the folder holds no student.

    References: ours; students: Luo et al. 2023, arXiv 2310.04378.
    """

    path: str = ""
    limit: float | None = None
    steps: int = 0
    then: str = "adaptive_grid(calls=5)"
    name: ClassVar[str] = "cascade"
    neutral: ClassVar[Mapping[str, Any]] = {"path": ""}
    may_spend_more: ClassVar[bool] = True
    ranges: ClassVar[Ranges] = {"limit": (0, 1000), "steps": (0, 64)}

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.path:
            return
        own, card = self.own, StudentCard.read(self.path)
        if own.network or own.student or own.scope == "batch":
            raise SpecError(
                f"cascade: expected `then` to be a policy of the model alone that decides for each sample, got "
                f"{shorten(self.then)}."
            )
        _ = Student(self.path, self.steps).num_steps  # refuses a number of steps that it was not trained for
        if self.num_steps < 2:
            raise SpecError(
                f"cascade: expected a student of two steps or more, whose estimates can be compared, got {self.path}, "
                f"of {card.steps}. Distil one: skipstone distill --method consistency --steps 2."
            )

    @cached_property
    def own(self) -> Policy:
        """The policy of the model, where the student's picture is not kept."""
        policy: Policy = registry.parse("policy", self.then)
        return policy

    @property
    def num_steps(self) -> int:
        """Steps of the student."""
        return Student(self.path, self.steps).num_steps

    @property
    def student(self) -> str:
        return self.path

    @property
    def solver(self) -> str:
        return self.own.solver if self.path else ""

    @property
    def needs(self) -> frozenset[str]:
        return self.own.needs | {CHANGE} if self.path else frozenset()

    @property
    def sites(self) -> frozenset[str]:
        return self.own.sites if self.path else frozenset()

    @property
    def reads_prompt(self) -> bool:
        return bool(self.path) and self.own.reads_prompt

    @property
    def variants(self) -> Sequence[Policy]:
        return [replace(self, limit=limit) for limit in LIMITS] if self.path and self.limit is None else ()

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if not self.path or not proposal.accept:
            return proposal
        if not run.attempts:
            return replace(proposal, evaluate=Draft(self.num_steps), t_next=run.t_end)
        if not isinstance(run.attempts[0].plan.evaluate, Draft):  # overruled by a policy behind this one
            return self.own.consult([run], [proposal])[0]
        if len(run.attempts) > 1:
            return self.own.consult([replace(run, past=run.past[1:])], [proposal])[0]
        limit = DEFAULT_LIMIT if self.limit is None else self.limit
        if run.attempts[0].signals.get(CHANGE, math.inf) <= limit:
            return proposal
        anew = replace(run, pending=None)
        return replace(self.own.consult([anew], [anew.proposal()])[0], accept=False)
