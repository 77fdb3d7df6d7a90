"""The settings that calibration chooses from: a policy's ladder, what users name, and fixed samplers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import registry
from ..engine.contracts import Policy
from ..errors import SkipstoneError, SpecError
from ..evaluation.columns import OWN, Column, Sampler, parse_column
from ..evaluation.engine_subject import Engine
from ..evaluation.subject import Item, Subject

# Fixed samplers that are worth trying on any model; each at these shares of the full run's steps.
WAYS = (OWN, "dpmpp / trailing", "dpmpp / karras", "unipc / trailing")
SHARES = (0.2, 0.24, 0.3, 0.36, 0.4, 0.5, 0.6, 0.7)
LONG = "stride"  # the family that is tried in every pipeline that lets its loop be taken over


@dataclass(frozen=True)
class Rung:
    """One setting.

    Args:
        column: How it denoises.
        family: Of settings that run, or do not, together.
    """

    column: Column
    family: str

    @property
    def fixed(self) -> bool:
        """Whether it is a sampler in place of the model's own, not a policy."""
        return not self.column.adaptive


def rungs(subject: Subject, sampler: Sampler, settings: Sequence[str] = (), samplers: bool = False) -> list[Rung]:
    """Every setting to choose from, each once.

    Args:
        subject: The model.
        sampler: Of what specs leave unsaid.
        settings: Columns to choose from, in any order; none takes the ladders of policies.
        samplers: Whether fixed samplers are settings too.

    Raises:
        SpecError: a setting that cannot be understood, or one that is no setting.
    """
    found = [_said(subject, spec, sampler) for spec in settings]
    if not settings:
        found = [rung for family in _families(subject) for rung in _ladder(subject, family, sampler)]
    if samplers:
        found += _samplers(subject, sampler)
    return list({rung.column.spec: rung for rung in found}.values())


def runnable(subject: Subject, found: Sequence[Rung], item: Item) -> tuple[list[Rung], list[str]]:
    """The rungs of families whose first setting draws a sample, and why the others do not.

    Raises:
        SkipstoneError: no family does.
    """
    why: dict[str, SkipstoneError] = {}
    for rung in {rung.family: rung for rung in reversed(found)}.values():
        try:
            subject.load([rung.column])
            subject.draw([item], rung.column)
        except SkipstoneError as e:
            why[rung.family] = e
    ready = [rung for rung in found if rung.family not in why]
    if not ready:
        raise next(iter(why.values()))
    return ready, [f"{family} is left out: {e}" for family, e in why.items()]


def _said(subject: Subject, spec: str, sampler: Sampler) -> Rung:
    column = subject.admit(parse_column(spec, *sampler))
    if column.policy is None or column.peer is not None:
        raise SpecError(f"settings: expected policies or fixed samplers, got {spec!r}.")
    name = column.spec.partition(" @ ")[0].partition("(")[0]
    return Rung(column, f"{name} @ {column.way}")


def _families(subject: Subject) -> list[type[Policy]]:
    """Of the policy that the model runs by default, and before it `stride` where pipelines may let it run."""
    own: type[Policy] = type(registry.parse("policy", subject.policy))
    longest: type[Policy] = registry.lookup("policy", LONG)
    found = [own] if isinstance(subject, Engine) else list(dict.fromkeys((longest, own)))
    if not any(family.ladder for family in found):
        raise SpecError(f"{own.name} has no ladder of settings: name some with settings=[...] or --setting.")
    return found


def _ladder(subject: Subject, family: type[Policy], sampler: Sampler) -> list[Rung]:
    """A family on the command's sampler, in columns that the model admits; none where it admits none."""
    found = []
    for settings in family.ladder:
        spec = registry.spell(family(**settings))
        try:
            found.append(Rung(subject.admit(parse_column(spec, *sampler)), family.name))
        except SkipstoneError:
            return []
    return found


def _samplers(subject: Subject, sampler: Sampler) -> list[Rung]:
    """Fixed samplers with fewer steps, of those that this model has."""
    found = []
    for way in WAYS:
        for share in SHARES:
            steps = max(1, round(share * sampler.steps))
            spec = f"fixed @ {way} / {steps}"
            own = sampler if way == OWN else Sampler()
            spec = f"fixed @ {steps}" if way == OWN else spec
            try:
                found.append(Rung(subject.admit(parse_column(spec, own.solver, own.grid, steps)), f"fixed {way}"))
            except SkipstoneError:
                break
    return found
