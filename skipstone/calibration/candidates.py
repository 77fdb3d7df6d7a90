"""The settings that calibration chooses from: a policy's ladder, what users name, and fixed samplers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .. import registry
from ..engine.contracts import Policy
from ..errors import SkipstoneError, SpecError
from ..evaluation.columns import OWN, Column, Sampler, check_names_apart, parse_column
from ..evaluation.engine_subject import EngineSubject
from ..evaluation.subject import SampleRequest, Subject, draw_or_fall_back, local_model

# Fixed samplers that are worth trying on any model; each at these shares of the full run's steps.
SAMPLER_SPECS = (OWN, "dpmpp / trailing", "dpmpp / karras", "unipc / trailing")
STEP_SHARES = (0.2, 0.24, 0.3, 0.36, 0.4, 0.5, 0.6, 0.7)
TAKEOVER_FAMILY = "stride"  # the family that is tried in every pipeline that lets its loop be taken over


@dataclass(frozen=True)
class CandidateSetting:
    """One setting.

    Args:
        column: How it denoises.
        family: Of settings that run, or do not, together.
    """

    column: Column
    family: str

    @property
    def fixed(self) -> bool:
        """Whether the setting is a sampler that replaces the model's own, not a policy."""
        return not self.column.is_adaptive


def candidates(
    subject: Subject, sampler: Sampler, settings: Sequence[str] = (), samplers: bool = False
) -> list[CandidateSetting]:
    """Every setting to choose from, each once.

    Args:
        subject: The model.
        sampler: Of what specs leave unsaid.
        settings: Columns to choose from, in any order; none takes the ladders of policies.
        samplers: Whether fixed samplers are settings too.

    Raises:
        SpecError: a setting that cannot be understood, one that is no setting, or one that is named in two ways.
    """
    found = [one for spec in settings for one in _with_variants(_parse_candidate(subject, spec, sampler))]
    check_names_apart([candidate.column for candidate in found])
    if not settings:
        found = [candidate for family in _families(subject) for candidate in _ladder(subject, family, sampler)]
    if samplers:
        found += _samplers(subject, sampler)
    return list({candidate.column.spec: candidate for candidate in found}.values())


def runnable(
    subject: Subject, found: Sequence[CandidateSetting], item: SampleRequest
) -> tuple[list[CandidateSetting], list[str]]:
    """The settings of policies whose first setting draws a sample, and why the others do not.

    A preset that cannot take the loop over is replaced by its fallback, which is then the setting.

    Raises:
        SkipstoneError: none does.
    """
    why: dict[str, SkipstoneError] = {}
    others: dict[str, CandidateSetting] = {}
    for candidate in {candidate.family: candidate for candidate in reversed(found)}.values():
        try:
            subject.load([candidate.column])
            *_, ran = draw_or_fall_back(subject, [item], candidate.column)
            if ran.refusal:
                others[candidate.column.spec] = replace(candidate, column=ran)
        except SkipstoneError as e:
            why[candidate.family] = e
    ready = [others.get(candidate.column.spec, candidate) for candidate in found if candidate.family not in why]
    if not ready:
        raise next(iter(why.values()))
    notes = [candidate.column.refusal_note for candidate in others.values()]
    notes += [f"{family} is left out: {e}" for family, e in why.items()]
    return list({candidate.column.spec: candidate for candidate in ready}.values()), notes


def _parse_candidate(subject: Subject, spec: str, sampler: Sampler) -> CandidateSetting:
    column = subject.resolve_column(parse_column(spec, *sampler))
    if column.policy is None or column.peer is not None:
        raise SpecError(f"settings: expected policies or fixed samplers, got {spec!r}.")
    name = column.preset if column.fallback else column.spec.partition(" @ ")[0].partition("(")[0]
    return CandidateSetting(column, f"{name} @ {column.way}")


def _with_variants(candidate: CandidateSetting) -> list[CandidateSetting]:
    """The settings of a policy that leaves one open, such as `cascade` its limit; itself where nothing is open."""
    column = candidate.column
    variants = column.policy.variants if isinstance(column.policy, Policy) else ()
    return [replace(candidate, column=replace(column, policy=one)) for one in variants] or [candidate]


def _families(subject: Subject) -> list[type[Policy]]:
    """Ladder of the model's default policy, preceded by that of `stride` where pipelines may allow it."""
    own: type[Policy] = type(registry.parse("policy", subject.policy))
    longest: type[Policy] = registry.find_class("policy", TAKEOVER_FAMILY)
    found = [own] if isinstance(local_model(subject), EngineSubject) else list(dict.fromkeys((longest, own)))
    if not any(family.calibration_settings for family in found):
        raise SpecError(f"{own.name} has no ladder of settings: name some with settings=[...] or -p.")
    return found


def _ladder(subject: Subject, family: type[Policy], sampler: Sampler) -> list[CandidateSetting]:
    """A family on the command's sampler, in columns that the model admits; none where it admits none."""
    found = []
    for settings in family.calibration_settings:
        spec = registry.spell(family(**settings))
        try:
            found.append(CandidateSetting(subject.resolve_column(parse_column(spec, *sampler)), family.name))
        except SkipstoneError:
            return []
    return found


def _samplers(subject: Subject, sampler: Sampler) -> list[CandidateSetting]:
    """Fixed samplers with fewer steps, of those that this model has."""
    found = []
    for way in SAMPLER_SPECS:
        for share in STEP_SHARES:
            steps = max(1, round(share * sampler.steps))
            spec = f"fixed @ {way} / {steps}"
            own = sampler if way == OWN else Sampler()
            spec = f"fixed @ {steps}" if way == OWN else spec
            try:
                found.append(
                    CandidateSetting(
                        subject.resolve_column(parse_column(spec, own.solver, own.grid, steps)), f"fixed {way}"
                    )
                )
            except SkipstoneError:
                break
    return found
