"""Settings by domain: kept where they lead on other samples, and one setting where domains do not differ."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from domain_prompts import TRAINING
from exact import ExactSubject

from skipstone import registry
from skipstone.engine.drivers import denoise_many
from skipstone.engine.requests import Problem
from skipstone.evaluation.columns import Column
from skipstone.evaluation.prompts import Prompt
from skipstone.evaluation.references import EvaluationSample
from skipstone.evaluation.subject import GeneratedSample
from skipstone.policies.certified import FILE
from skipstone.policies.domains.classifier import CLASSIFIER_FILE
from skipstone.policies.domains.policy import ByDomain
from skipstone.policies.storage import read_policy
from skipstone.testing.backbones.mixture import Mixture
from skipstone.tuning.domains import report
from skipstone.tuning.domains.fit import Inputs, fit_classifier
from skipstone.tuning.domains.search import UNKNOWN, DomainResult, DomainSamples, DomainSearch, DomainVerdict
from skipstone.tuning.domains.states import prompt_states
from skipstone.tuning.run_cache import RunCache
from skipstone.tuning.search import TuningSettings
from skipstone.tuning.slopes import Lead

NEAR = Mixture(means=(-0.9, 0.9), stds=(0.1, 0.1), weights=(0.5, 0.5))
FAR = Mixture(means=(-0.02, 0.03), stds=(0.9, 1.1), weights=(0.5, 0.5))


@dataclass
class TwoWorlds(ExactSubject):
    """Prompts of two kinds are drawn by two backbones."""

    others: dict[str, Any] = field(default_factory=dict)

    def draw(self, items: Any, column: Column, watch: Any = None) -> tuple[list[GeneratedSample], float]:
        column = self.resolve_column(column)
        assert column.solver is not None
        assert column.grid is not None
        made = []
        for item in items:
            world = self.others.get(item.prompt.split()[0], self.backbone)
            grid = tuple(column.grid.times(world.schedule, column.steps))
            problem = Problem(world.schedule, self.start(item), grid, branches=world.branches, text=item.prompt)
            (result,) = denoise_many(world, [problem], column.solver, column.effective_policy)
            made.append(GeneratedSample(result.x, result.run, result.run.cost, float(column.steps), result.status))
        self.drawn += len(items)
        return made, 0.0


def group(domain: str, first: int, count: int = 4) -> DomainSamples:
    def some(start: int) -> list[EvaluationSample]:
        places = range(start, start + count)
        return [EvaluationSample(Prompt(f"{domain}{k}", f"{domain} {k}", domain), k) for k in places]

    return DomainSamples(domain, some(first), some(first + 500))


def search(folder: Path, worlds: dict[str, Any], **more: Any) -> DomainSearch:
    groups = [group("near", 0), group("far", 100)]
    guesses = {sample.id: one.domain for one in groups for sample in one.check}
    settings = TuningSettings(**{"calls": (6,), "fine": 64, **more})
    return DomainSearch(TwoWorlds(NEAR, steps=24, others=worlds), settings, groups, guesses, RunCache.open(folder, {}))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[DomainSearch, DomainResult]:
    made = search(tmp_path_factory.mktemp("paths"), {"far": FAR})
    return made, made.run_paths()


def test_grids_of_domains_that_differ_are_their_own(paths: tuple[DomainSearch, DomainResult]) -> None:
    made, found = paths
    assert found.differ
    own = found.settings(6)
    assert own
    for domain, policy in own.items():
        assert registry.spell(policy) != registry.spell(found.general[6])
        assert found.found[6][domain].lead.counts
        assert f"{domain} {found.found[6][domain].lead.mean:+.1f}" in found.words(6)
    assert found.overall[6].mean > 0.0
    assert {policy.solver for policy in (found.general[6], *own.values())} == {found.general[6].solver}
    assert made.check[0].prompt.text != made.tuning[0].prompt.text


def test_the_overall_lead_is_that_of_the_settings_as_they_are_used(paths: tuple[DomainSearch, DomainResult]) -> None:
    """Where the classifier knows no domain, everybody has the general setting, and nothing leads."""
    made, found = paths
    unknown = replace(made, guesses={}).run_paths()
    assert unknown.found == found.found
    assert unknown.overall[6] == Lead(0.0, 0.0)
    leads = [found.found[6][domain].lead.mean for domain in found.settings(6)]
    assert found.overall[6].mean == pytest.approx(sum(leads) / len(made.groups), abs=0.5)


def test_domains_that_do_not_differ_keep_one_setting(tmp_path: Path) -> None:
    found = search(tmp_path, {}).run_slopes()
    assert not found.differ
    assert found.settings(6) == {}
    assert "the domains do not differ" in found.words(6)
    assert found.overall[6] == Lead(0.0, 0.0)


def test_what_was_drawn_is_not_drawn_again(paths: tuple[DomainSearch, DomainResult]) -> None:
    made, found = paths
    drawn = made.subject.drawn  # type: ignore[attr-defined]
    again = made.run_paths()
    assert again.words(6) == found.words(6)
    assert made.subject.drawn == drawn + 3  # type: ignore[attr-defined]  # where runs begin, of all and of each


def result(**leads: Lead) -> DomainResult:
    policy = registry.parse("policy", "interval(every=3)")
    found = {10: {domain: DomainVerdict(policy, lead, lead != UNKNOWN) for domain, lead in leads.items()}}
    return DomainResult({10: registry.parse("policy", "interval")}, found, {10: Lead(0.2, 0.1)}, {})


@pytest.mark.parametrize(
    ("lead", "own"),
    [(Lead(0.6, 0.2), True), (Lead(0.4, 0.1), False), (Lead(2.0, 2.1), False), (UNKNOWN, False)],
)
def test_a_domain_has_its_own_setting_where_it_leads_by_enough(lead: Lead, own: bool) -> None:
    made = result(art=lead, food=Lead(-1.0, 0.1))
    assert (set(made.settings(10)) == {"art"}) is own
    assert ("do not differ" in made.words(10)) is not own
    assert ("Of art no lead can be measured" in made.words(10)) is (lead == UNKNOWN)


def test_results_are_policies_that_run(tmp_path: Path) -> None:
    classifier, fitted = fit_classifier(Inputs(TRAINING))
    made = result(art=Lead(1.0, 0.2), food=Lead(-1.0, 0.1))
    about = {"model": "exact", "domains": {"art": [3, 4], "food": [3, 5]}, "command": "skipstone tune"}
    texts = [prompt.text for prompt in TRAINING]
    written = report.write_report(made, classifier, fitted, texts, tmp_path, about)
    assert written == report.report_files(tmp_path, (10,))
    assert all(file.is_file() for file in written)
    policy = read_policy(report.policy_folder(tmp_path, 10))
    assert isinstance(policy, ByDomain)
    assert policy.settings.domains == {"art": registry.parse("policy", "interval(every=3)")}
    said = json.loads((tmp_path / report.RESULTS).read_text())
    assert said["calls"][0]["verdict"] == made.words(10)
    assert "on 9 samples that chose nothing" in (tmp_path / report.PAGE).read_text()

    kept = result(art=Lead(0.1, 0.2))
    report.write_report(kept, classifier, fitted, texts, tmp_path, about)
    folder = report.policy_folder(tmp_path, 10)
    assert read_policy(folder) == registry.parse("policy", "interval")
    assert {path.name for path in folder.iterdir()} == {FILE}
    assert not (folder / CLASSIFIER_FILE).exists()


def test_states_are_those_that_runs_know() -> None:
    """Read off one step of each prompt, as a pipeline has it; None where runs tell of none."""

    class Known(TwoWorlds):
        def draw(self, items: Any, column: Column, watch: Any = None) -> tuple[list[GeneratedSample], float]:
            assert column.steps == 1
            made, seconds = super().draw(items, column)
            states = [(float(len(item.prompt)), 1.0) for item in items]
            known = [replace(one.run, prompt=state) for one, state in zip(made, states, strict=True) if one.run]
            return [replace(one, run=run) for one, run in zip(made, known, strict=True)], seconds

    found = prompt_states(Known(NEAR), ["a", "abc", "ab"], batch=2)
    assert found.tolist() == [[1.0, 1.0], [3.0, 1.0], [2.0, 1.0]]
    assert prompt_states(TwoWorlds(NEAR), ["a", "abc"]) is None
