"""The search for one setting of each domain, held against one setting for all on other samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ... import registry
from ...engine.contracts import Policy
from ...evaluation.progress import ProgressCallback, no_progress
from ...evaluation.references import EvaluationSample
from ...evaluation.subject import Subject
from ..cached_runs import CachedRuns, RunScore
from ..reference import MARGIN, ReferenceRuns
from ..run_cache import RunCache
from ..search import TimeGridSearch, TuningResult, TuningRow, TuningSettings
from ..slopes import LEAD, Lead, SlopeSearch, around, leads, slope_policy

UNKNOWN = Lead(0.0, float("inf"))  # of what cannot be measured


@dataclass(frozen=True)
class DomainSamples:
    """The samples of one domain.

    Args:
        domain: Its name.
        tuning: That its setting is chosen on.
        check: That it is held against the general setting on.
    """

    domain: str
    tuning: Sequence[EvaluationSample]
    check: Sequence[EvaluationSample]


class DomainVerdict(NamedTuple):
    """What was found for one domain and one number of calls.

    Args:
        policy: The best on its tuning samples.
        lead: Over the general setting on its other samples, in dB at equal calls.
        measured: Whether its runs are not too near to the references to be told apart.
    """

    policy: Policy
    lead: Lead
    measured: bool = True


@dataclass(frozen=True)
class DomainResult:
    """Result of a search by domain.

    Args:
        general: Number of calls -> the setting for all prompts.
        found: Number of calls -> domain -> what was found.
        overall: Number of calls -> lead of the settings by domain over the general one on all samples of the check,
            each prompt's domain being what the classifier says of it.
        rows: Of each domain, what ran on its samples of the check.
        notes: What the user should know.
    """

    general: Mapping[int, Policy]
    found: Mapping[int, Mapping[str, DomainVerdict]]
    overall: Mapping[int, Lead]
    rows: Mapping[str, Sequence[TuningRow]]
    notes: Sequence[str] = ()

    @property
    def calls(self) -> tuple[int, ...]:
        """Numbers of calls that were tuned for."""
        return tuple(self.general)

    def settings(self, calls: int) -> dict[str, Policy]:
        """The domains whose own setting leads on other samples, and their settings."""
        return {domain: one.policy for domain, one in self.found[calls].items() if one.lead.counts}

    @property
    def differ(self) -> bool:
        """Whether any domain has a setting of its own."""
        return any(self.settings(calls) for calls in self.calls)

    def words(self, calls: int) -> str:
        """What was found for this many calls, as sentences."""
        found, own = self.found[calls], self.settings(calls)
        near = [domain for domain, one in found.items() if not one.measured]
        said = []
        if near:
            said.append(
                f"Of {', '.join(near)} no lead can be measured: runs are less than {MARGIN:g} dB farther from the "
                f"references than these are from each other."
            )
        if not own:
            least = f"{LEAD:g} dB and one standard error"
            return " ".join(
                [f"With {calls} calls the domains do not differ: none leads the general setting by {least} on other "
                 f"samples. One setting is kept.", *said]
            )  # fmt: skip
        shown = ", ".join(
            f"{domain} {found[domain].lead.mean:+.1f} (standard error {found[domain].lead.error:.1f})" for domain in own
        )
        lead = self.overall[calls]
        rest = "" if len(own) == len(found) else " The other domains keep the general setting."
        return " ".join(
            [f"With {calls} calls {len(own)} of {len(found)} domains have a setting of their own, by their lead over "
             f"the general one in dB on other samples: {shown}.{rest} On all samples of the check, by the domain that "
             f"the classifier tells: {lead.mean:+.2f} dB (standard error {lead.error:.2f}).", *said]
        )  # fmt: skip


@dataclass(frozen=True)
class DomainSearch:
    """A search by domain, by the searches of slopes or of grids.

    Args:
        subject: The model.
        settings: How; rivals are not run.
        groups: The samples of each domain.
        guesses: Sample id -> the domain that the classifier tells of its prompt, "" where none, having been trained
            without it.
        run_cache: Where runs are kept.
        on_progress: Called with the progress.
        notes: What the user should know, after the run.
    """

    subject: Subject
    settings: TuningSettings
    groups: Sequence[DomainSamples]
    guesses: Mapping[str, str]
    run_cache: RunCache
    on_progress: ProgressCallback = no_progress
    notes: list[str] = field(default_factory=list)

    @property
    def tuning(self) -> list[EvaluationSample]:
        """The tuning samples of all domains."""
        return [sample for group in self.groups for sample in group.tuning]

    @property
    def check(self) -> list[EvaluationSample]:
        """The samples of the check of all domains."""
        return [sample for group in self.groups for sample in group.check]

    @property
    def cached_runs(self) -> CachedRuns:
        """Runs of the model, cached as they are made."""
        s = self.settings
        return CachedRuns(self.subject, self.run_cache, s.fine, s.batch, s.seed, self.on_progress)

    def run_slopes(self) -> DomainResult:
        """Slopes of `adaptive_grid`. Raises as `SlopeSearch.run`."""
        search = SlopeSearch(
            self.subject, self.settings, self.tuning, self.check, self.run_cache, self._progress("all domains")
        )
        general, reference = search.run(), search.reference()
        own = {
            group.domain: replace(
                search,
                eval_samples=group.tuning,
                check=group.check,
                base=general.slopes,
                known=reference,
                on_progress=self._progress(group.domain),
            ).run()
            for group in self.groups
        }
        verdicts = {
            calls: {
                domain: DomainVerdict(
                    slope_policy(found.best, calls), found.lead if found.measured else UNKNOWN, bool(found.measured)
                )
                for domain, found in own.items()
            }
            for calls in self.settings.calls
        }
        result = DomainResult(
            {calls: slope_policy(general.slopes, calls) for calls in self.settings.calls},
            verdicts,
            {},
            {domain: found.rows for domain, found in own.items()},
        )

        def base(calls: int) -> list[Policy]:
            return [slope_policy(general.slopes, n) for n in around(self.settings.calls)]

        return self._with_overall(result, reference, base, search.notes)

    def run_paths(self) -> DomainResult:
        """Grids of `path`. Raises as `TimeGridSearch.run`."""
        settings = replace(self.settings, rivals=False)
        search = TimeGridSearch(
            self.subject, settings, self.tuning, self.check, self.run_cache, self._progress("all domains")
        )
        general = search.run()
        own = {
            group.domain: replace(
                search,
                eval_samples=group.tuning,
                check=group.check,
                general=general.grids,
                on_progress=self._progress(group.domain),
            ).run()
            for group in self.groups
        }
        verdicts = {
            calls: {
                domain: DomainVerdict(found.policy(calls), _lead_of_rows(found, calls)) for domain, found in own.items()
            }
            for calls in self.settings.calls
        }
        rows = {domain: [row for row in found.rows if row.group != "even"] for domain, found in own.items()}
        result = DomainResult({n: general.policy(n) for n in self.settings.calls}, verdicts, {}, rows)
        assert general.reference is not None
        return self._with_overall(result, general.reference, lambda calls: [general.policy(calls)], search.notes)

    def _progress(self, domain: str) -> ProgressCallback:
        return lambda what, done, total: self.on_progress(f"{domain}: {what[:1].lower()}{what[1:]}", done, total)

    def _with_overall(
        self,
        result: DomainResult,
        reference: ReferenceRuns,
        base: Callable[[int], Sequence[Policy]],
        notes: Sequence[str],
    ) -> DomainResult:
        """The result with its overall leads; `base` are the general settings that calls are interpolated between."""
        overall = {}
        for calls in result.calls:
            settings, general = result.settings(calls), result.general[calls]
            if not settings:
                overall[calls] = Lead(0.0, 0.0)
                continue
            chosen = {s.id: settings.get(self.guesses.get(s.id, ""), general) for s in self.check}
            mine = self._scores(lambda sample, chosen=chosen: chosen[sample.id], reference)  # type: ignore[misc]
            theirs = [self._scores(lambda _, policy=policy: policy, reference) for policy in base(calls)]  # type: ignore[misc]
            overall[calls] = leads([mine], theirs)
        return replace(result, overall=overall, notes=tuple(dict.fromkeys(notes)))

    def _scores(self, choose: Callable[[EvaluationSample], Policy], reference: ReferenceRuns) -> list[RunScore]:
        """The runs of the check, each sample under the policy that is chosen for it."""
        grouped: dict[str, list[EvaluationSample]] = {}
        for sample in self.check:
            grouped.setdefault(registry.spell(choose(sample)), []).append(sample)
        found: dict[str, RunScore] = {}
        for some in grouped.values():
            column = self.cached_runs.column(choose(some[0]))
            scores = self.cached_runs.score_runs(column, some, reference.name, reference.pictures(some))
            found |= {sample.id: score for sample, score in zip(some, scores, strict=True)}
        return [found[sample.id] for sample in self.check]


def _lead_of_rows(found: TuningResult, calls: int) -> Lead:
    """The lead of a domain's own grid over the general one, which ran beside."""
    rows = {row.group: row.scores for row in found.rows if row.calls == calls}
    return leads([rows["path"]], [rows["general"]])
