"""`by_domain`: each sample gets the setting of its prompt's domain, alone and in a batch, and says so."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from domain_prompts import TRAINING

import skipstone
from skipstone import registry
from skipstone.engine.contracts import Run
from skipstone.engine.drivers import denoise, denoise_many
from skipstone.engine.requests import Problem
from skipstone.engine.trace import explain, from_json, to_json
from skipstone.errors import SpecError
from skipstone.policies.certified import FILE
from skipstone.policies.domains.classifier import CLASSIFIER_FILE, DomainClassifier
from skipstone.policies.domains.policy import ByDomain, DomainSettings
from skipstone.policies.seen_prompts import digest_prompt, seen_prompts
from skipstone.policies.storage import is_policy_folder, read_policy
from skipstone.testing import check_id, policy_checks
from skipstone.testing.policies import PolicySetup
from skipstone.tuning.domains.fit import Inputs, fit_classifier
from skipstone.tuning.domains.report import save_domains

GENERAL = "interval(every=2)"
OWN = {"space": "interval(every=4) | early_stop(tol=0.05)", "food": "error_control(tol=0.02)", "art": "fixed"}
TEXTS = ["the surface of Mars with pears", "a bowl of signature soup beside pears", "a cart full of pears", "zxqv 4711"]
STATES = {"space": (4.0, 0.0, 0.0), "food": (0.0, 4.0, 0.0), "vehicle": (0.0, 0.0, 4.0), "art": (-3.0, -3.0, -3.0)}
PROMPTS = [*STATES.values(), ()]


@pytest.fixture(scope="module")
def classifiers() -> dict[str, DomainClassifier]:
    some = [prompt for prompt in TRAINING if prompt.category in STATES]
    noise = np.random.default_rng(0).standard_normal((len(some), 3))
    states = np.array([STATES[prompt.category] for prompt in some]) + 0.2 * noise
    kinds = {"words": Inputs(TRAINING), "states": Inputs(some, states, "states")}
    return {kind: fit_classifier(inputs)[0] for kind, inputs in kinds.items()}


@pytest.fixture(scope="module", params=["words", "states"])
def policy(
    request: pytest.FixtureRequest, classifiers: dict[str, DomainClassifier], tmp_path_factory: pytest.TempPathFactory
) -> ByDomain:
    folder = tmp_path_factory.mktemp(request.param)
    texts = [prompt.text for prompt in TRAINING]
    save_domains(folder, GENERAL, OWN, classifiers[request.param], texts, {"made": "here"})
    return ByDomain(str(folder))


@dataclass(frozen=True)
class WithPrompts(PolicySetup):
    """Samples with prompts, so that a batch has several domains."""

    def problem(self, seed: int = 0, steps: int | None = None, scale: float = 1.0) -> Problem:
        bare = PolicySetup.problem(self, seed, steps, scale)
        return replace(bare, text=TEXTS[seed % len(TEXTS)], prompt=PROMPTS[seed % len(PROMPTS)])


def checks(policy: ByDomain) -> Iterator[Callable[[], None]]:
    yield from policy_checks(policy, WithPrompts())


def test_it_passes_what_every_policy_passes(policy: ByDomain) -> None:
    names = set()
    for check in checks(policy):
        check()
        names.add(check_id(check))
    assert {"is_pure", "ignores_company", "replays_exactly", "spelling_round_trips"} <= names


@pytest.mark.parametrize("k", range(5))
def test_a_sample_runs_as_under_the_setting_of_its_domain(policy: ByDomain, k: int) -> None:
    setup = WithPrompts()
    problem = setup.problem(k)
    domain, own = policy.settings.choose(
        Run(1.0, 0.0, (1.0, 0.0), (0.0, 1.0), prompt=problem.prompt, text=problem.text)
    )
    mine, theirs = (setup.run(one, problem) for one in (policy, own))
    assert np.array_equal(mine.x, theirs.x)
    assert mine.run.cost == theirs.run.cost
    why = {name for attempt in mine.run.past for name in attempt.plan.why}
    if registry.spell(own) == "fixed":
        assert not why
        return
    assert f"by_domain({domain})" in why
    assert {name for name in why if name.startswith("by_domain")} == {f"by_domain({domain})"}
    assert f"by_domain({domain}) amended" in explain(mine.run)


def test_each_sample_of_a_batch_has_its_own(policy: ByDomain) -> None:
    setup = WithPrompts()
    problems = [setup.problem(k) for k in range(5)]
    together = denoise_many(setup.backbone, problems, setup.solver, policy)
    assert len({result.run.cost for result in together}) >= 3
    for problem, result in zip(problems, together, strict=True):
        alone = denoise(setup.backbone, problem, setup.solver, policy)
        assert np.array_equal(alone.x, result.x)
        assert alone.run == result.run


@pytest.mark.parametrize(("text", "prompt"), [("", ()), ("zxqv 4711 kjhw bnmrt", (90.0, -90.0, 60.0))])
def test_no_prompt_and_a_strange_one_get_the_general_setting(
    policy: ByDomain, text: str, prompt: tuple[float, ...]
) -> None:
    setup = PolicySetup()
    problem = replace(setup.problem(), text=text, prompt=prompt)
    mine = setup.run(policy, problem)
    general = setup.run(registry.parse("policy", GENERAL), problem)
    assert np.array_equal(mine.x, general.x)
    said = "unknown" if text else "no prompt"
    why = {name for attempt in mine.run.past for name in attempt.plan.why}
    assert f"by_domain({said}, general setting)" in why


def test_its_facts_are_those_of_all_settings(policy: ByDomain) -> None:
    parts = [registry.parse("policy", spec) for spec in (GENERAL, *OWN.values())]
    assert policy.needs == frozenset().union(*(part.needs for part in parts))
    assert policy.reads_prompt is policy.settings.classifier.reads_states
    assert policy.solver == ""
    assert policy.scope == "sample"
    assert ByDomain().needs == frozenset()
    assert not ByDomain().reads_prompt


def test_its_folder_goes_where_a_policy_goes(policy: ByDomain) -> None:
    assert is_policy_folder(policy.path)
    assert read_policy(policy.path) == policy
    assert skipstone.load_policy(policy.path) == policy
    assert digest_prompt(TRAINING[3].text) in seen_prompts(policy)
    assert json.loads((Path(policy.path) / FILE).read_text())["notes"] == {"made": "here"}


def test_another_process_gets_the_path_and_no_more(policy: ByDomain) -> None:
    policy.settings.classifier.classify(TEXTS[0], PROMPTS[0])
    sent = pickle.dumps(policy)
    assert len(sent) < 1000
    assert pickle.loads(sent) == policy


def test_a_trace_keeps_the_text(policy: ByDomain) -> None:
    run = WithPrompts().run(policy).run
    assert run.text == TEXTS[0]
    assert from_json(to_json(run)).run == run


# -- What cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("general", "own", "said"),
    [
        (GENERAL, {"cars": "fixed"}, "settings of domains that the classifier knows"),
        ("adaptive_grid", {"food": "path(times='0.5')"}, "one solver for all domains, got adams and kriging"),
        (GENERAL, {"food": "by_domain"}, "do not go by domains themselves"),
        (GENERAL, {"food": "fixed | by_domain(path='x')"}, "do not go by domains themselves"),
        (GENERAL, {"food": "third_order_released"}, "it decides for batches"),
        (GENERAL, {"food": "student(path='pebble-progressive-1')"}, "has weights of its own"),
        (GENERAL, {"food": "no_such_policy"}, "No policy is called"),
    ],
)
def test_settings_that_cannot_stand_beside_each_other_are_refused(
    general: str, own: dict[str, str], said: str, classifiers: dict[str, DomainClassifier], tmp_path: Path
) -> None:
    save_domains(tmp_path, general, own, classifiers["words"])
    for make in (lambda: ByDomain(str(tmp_path)), lambda: read_policy(tmp_path), lambda: DomainSettings.load(tmp_path)):
        with pytest.raises(SpecError, match=said):
            make()


@pytest.mark.parametrize("path", ["nowhere", "x" * 5000, "a\0b", "~nobody-here/x"])
def test_a_folder_that_is_none_is_a_sentence(path: str) -> None:
    with pytest.raises(SpecError, match="skipstone tune --domains"):
        ByDomain(path)


def test_a_folder_without_its_classifier_is_a_sentence(
    classifiers: dict[str, DomainClassifier], tmp_path: Path
) -> None:
    save_domains(tmp_path, GENERAL, OWN, classifiers["words"])
    (tmp_path / CLASSIFIER_FILE).unlink()
    with pytest.raises(SpecError, match=r"found no policy\.json and domains\.safetensors"):
        read_policy(tmp_path)


def test_a_folder_that_changes_is_read_again(classifiers: dict[str, DomainClassifier], tmp_path: Path) -> None:
    import os

    save_domains(tmp_path, GENERAL, OWN, classifiers["words"])
    assert ByDomain(str(tmp_path)).settings.general == registry.parse("policy", GENERAL)
    save_domains(tmp_path, "interval(every=5)", OWN, classifiers["words"])
    os.utime(tmp_path / FILE, (1, 1))
    assert registry.spell(ByDomain(str(tmp_path)).settings.general) == "interval(every=5)"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"domains": {"food": 3}}, "domains.food: expected text, got 3"),
        ({"domains": ["food"]}, "domains: expected an object"),
        ({"domains": {"food": "fixed("}}, "Expected 'name'"),
        ({"policy": "by_domain(path='.')"}, "by_domain: expected"),
        ({"more": 1}, "expected no field"),
    ],
)
def test_a_damaged_folder_is_a_sentence(
    change: dict[str, object], said: str, classifiers: dict[str, DomainClassifier], tmp_path: Path
) -> None:
    save_domains(tmp_path, GENERAL, OWN, classifiers["words"])
    file = tmp_path / FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    for make in (lambda: ByDomain(str(tmp_path)), lambda: read_policy(tmp_path)):
        with pytest.raises(SpecError, match=said):
            make()
