"""Each prompt gets the setting of its domain."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

from ... import registry
from ...engine.contracts import Plan, Policy, Run
from ...errors import SpecError
from ...registry import register
from ...settings import check_settings, shorten
from ..certificate_files import read_saved_policy
from ..certified import FILE, Certified
from .classifier import CLASSIFIER_FILE, DomainClassifier

GENERAL = "general setting"  # in traces, of a prompt whose domain is not known or has no setting of its own


@dataclass(frozen=True, eq=False)
class DomainSettings:
    """What the folder of a `by_domain` holds.

    Args:
        general: Of prompts of no domain, or of one that has no setting of its own.
        domains: Domain -> its setting.
        classifier: Of prompts.

    Raises:
        SpecError: settings that cannot stand beside each other: with different solvers, with weights of their own,
            that decide for whole batches, or that go by domains themselves; a domain that the classifier does not know.
    """

    general: Policy
    domains: Mapping[str, Policy]
    classifier: DomainClassifier

    def __post_init__(self) -> None:
        unknown = [name for name in self.domains if name not in self.classifier.domains]
        if unknown:
            known = ", ".join(self.classifier.domains)
            raise SpecError(
                f"by_domain: expected settings of domains that the classifier knows ({known}), got {unknown[0]!r}."
            )
        for policy in self.policies:
            _check_setting(policy)
        solvers = sorted({policy.solver for policy in self.policies if policy.solver})
        if len(solvers) > 1:
            raise SpecError(f"by_domain: expected one solver for all domains, got {' and '.join(solvers)}.")

    @property
    def policies(self) -> tuple[Policy, ...]:
        """All settings, the general one first."""
        return (self.general, *self.domains.values())

    def choose(self, run: Run) -> tuple[str, Policy]:
        """What traces call the choice for a run, and its setting; the same throughout the run."""
        guess = self.classifier.classify(run.text, run.prompt)
        if guess.domain in self.domains:
            return guess.domain, self.domains[guess.domain]
        return f"{guess.domain or ('unknown' if guess.best else 'no prompt')}, {GENERAL}", self.general

    @classmethod
    def load(cls, folder: str | Path) -> DomainSettings:
        """Read a folder of `skipstone tune --domains`. Raises SpecError where there is none, or it is damaged."""
        _ = _dates(folder)
        path = Path(folder).expanduser() / FILE
        saved = read_saved_policy(str(path))
        for spec in (saved.policy, *saved.domains.values()):
            _check_not_nested(spec)
        general: Policy = registry.parse("policy", saved.policy)
        own = {name: registry.parse("policy", spec) for name, spec in saved.domains.items()}
        return cls(general, own, DomainClassifier.load(path.parent))


def _dates(folder: str | Path) -> tuple[float, ...]:
    """When the files of a folder were changed. Raises SpecError where they are not there."""
    try:
        path = Path(folder).expanduser()
        return tuple(os.stat(path / name).st_mtime for name in (FILE, CLASSIFIER_FILE))
    except (OSError, ValueError, RuntimeError):  # a name that no file can have; the home of nobody
        raise SpecError(
            f"by_domain: expected a folder of skipstone tune --domains, found no {FILE} and {CLASSIFIER_FILE} in "
            f"{shorten(str(folder))}. Make one: skipstone tune --domains PROMPTS --out DIR."
        ) from None


def _check_not_nested(spec: str) -> None:
    """Raise SpecError for the spec of a policy that goes by domains itself, before it is read: it may be this one."""
    for part in registry.split_chain(registry.parse_expression(spec), spec):
        name = part.func if isinstance(part, ast.Call) else part
        if isinstance(name, ast.Name) and name.id == ByDomain.name:
            raise SpecError(f"by_domain: expected settings that do not go by domains themselves, got {shorten(spec)}.")


def _check_setting(policy: Policy) -> None:
    """Raise SpecError for a policy that cannot be one of several settings of a batch."""
    spec = registry.spell(policy)
    if isinstance(policy, Certified):
        raise SpecError(f"by_domain: expected settings without a certificate, which is not for one domain, got {spec}.")
    if policy.network or policy.student:
        raise SpecError(f"by_domain: expected settings of one network, got {spec}, which has weights of its own.")
    if policy.scope == "batch":
        raise SpecError(
            f"by_domain: expected settings that decide for each sample, got {spec}: it decides for batches."
        )


@lru_cache(maxsize=32)
def _loaded(path: str, changed: tuple[float, ...]) -> DomainSettings:
    return DomainSettings.load(path)


@register("policy")
@dataclass(frozen=True)
class ByDomain(Policy):
    """Use the setting of the prompt's domain, and the general one where the domain is not known.

    A classifier tells each sample's domain by what the run knows of its prompt: the model's text states, or the text
    itself. It is sure above a confidence, and near enough to the prompts that it has learnt from; other prompts, and
    runs without one, get the general setting. Each sample of a batch gets its own. Traces say under `why` which domain
    was used: `by_domain(texture)`. All settings share one solver.

    Args:
        path: Folder of `skipstone tune --domains`. "" changes nothing.

    Raises:
        SpecError: no such folder, a damaged one, or settings that cannot stand beside each other.

    References: ours.
    """

    path: str = ""
    name: ClassVar[str] = "by_domain"
    neutral: ClassVar[Mapping[str, Any]] = {"path": ""}

    def __post_init__(self) -> None:
        check_settings(self)
        if self.path:
            _ = self.settings

    def __reduce__(self) -> tuple[type[ByDomain], tuple[str]]:
        return type(self), (self.path,)  # another process reads the folder itself

    @cached_property
    def settings(self) -> DomainSettings:
        """What the folder holds."""
        return _loaded(self.path, _dates(self.path))

    @property
    def _policies(self) -> tuple[Policy, ...]:
        return self.settings.policies if self.path else ()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(policy.needs for policy in self._policies))

    @property
    def sites(self) -> frozenset[str]:
        return frozenset().union(*(policy.sites for policy in self._policies))

    @property
    def may_spend_more(self) -> bool:
        return any(policy.may_spend_more for policy in self._policies)

    @property
    def reads_prompt(self) -> bool:
        if not self.path:
            return False
        return self.settings.classifier.reads_states or any(policy.reads_prompt for policy in self._policies)

    @property
    def solver(self) -> str:
        return next((policy.solver for policy in self._policies if policy.solver), "")

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if not self.path:
            return proposal
        _, policy = self.settings.choose(run)
        return policy.consult([run], [proposal])[0]

    def consult(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        """As every policy's, but `why` names the domain."""
        plans = self.plan_batch(runs, proposals)
        return [
            new if new == old else replace(new, why=(*new.why, f"{self.name}({self.settings.choose(run)[0]})"))
            for run, new, old in zip(runs, plans, proposals, strict=True)
        ]
