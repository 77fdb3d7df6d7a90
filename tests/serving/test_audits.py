"""Audits of certificates on what is served: a broken promise is withdrawn, one that holds is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from analytic import served
from domain_prompts import TRAINING

from skipstone.policies.domains.classifier import DomainClassifier
from skipstone.serving import Engine, PictureRequest
from skipstone.serving.audits import Auditor
from skipstone.serving.domain_choice import DomainChoice
from skipstone.serving.engine import _differences
from skipstone.serving.models import Source
from skipstone.serving.observers import Observers
from skipstone.serving.refusals import RequestRefused
from skipstone.serving.settings import cover, make_setting
from skipstone.tuning.domains.bandit import Arm, BanditFile, DomainBandit
from skipstone.tuning.domains.fit import Inputs, fit_classifier
from skipstone.tuning.domains.report import save_domains

FULL = "fixed @ ddim / trailing / 30"


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Three certificates, of which the faster two cannot hold."""
    model = served()
    found = {}
    for name, steps, target in (
        ("low", 2, "psnr >= 60 @ 90%"),
        ("medium", 3, "psnr >= 60 @ 90%"),
        ("high", 29, "psnr >= 20 @ 95%"),
    ):
        setting = make_setting(model.choices.subject, f"fixed @ ddim / trailing / {steps}")
        found[name] = replace(setting, certificate=name, target=target, calls=float(steps), reference=FULL)
    model.choices = replace(model.choices, certificates=found, default=found["low"])
    auditor = Auditor(share=1.0)
    with Engine({"analytic": model}, observer=auditor) as made:
        yield made


def draw(engine: Engine, quality: str, count: int) -> None:
    requests = [PictureRequest("ab", seed=seed, quality=quality) for seed in range(count)]
    for future in engine.submit_all(requests):
        future.result()


def audit_all(engine: Engine) -> list[bool]:
    assert isinstance(engine.observer, Auditor)
    found = []
    while (result := engine.observer.audit_next(engine)) is not None:
        found.append(result.alarm)
    return found


def test_a_promise_that_is_broken_is_withdrawn_and_a_safer_one_stands_in(engine: Engine) -> None:
    draw(engine, "low", 40)
    alarms = audit_all(engine)
    assert alarms[-1]
    assert alarms.count(True) == 1
    assert len(alarms) < 20  # it needs no more of the 40
    picture = engine.submit("ab", quality="low").result()
    assert (picture.certificate, picture.calls) == ("medium", 3)
    assert engine.submit("ab").result().certificate == "medium"  # the default was the same certificate


def test_where_none_is_safer_the_full_run_stands_in_and_it_is_said(engine: Engine) -> None:
    for quality in ("low", "medium"):
        draw(engine, quality, 40)
        audit_all(engine)
    for quality in ("low", "medium"):
        picture = engine.submit("ab", quality=quality).result()
        assert (picture.certificate, picture.calls) == ("", 30)
        assert "An audit has withdrawn the certificate" in picture.promise
    assert engine.submit("ab", quality="high").result().certificate == "high"


def test_a_promise_that_holds_is_kept(engine: Engine) -> None:
    draw(engine, "high", 30)
    assert audit_all(engine) == [False] * 30
    assert engine.find_model("").choices.certificates["high"].certificate == "high"


def test_audits_run_by_themselves_while_nothing_else_does(engine: Engine) -> None:
    auditor = engine.observer
    assert isinstance(auditor, Auditor)
    auditor.start(engine)
    draw(engine, "low", 40)
    while engine.find_model("").choices.certificates["low"].certificate == "low":
        pass
    auditor.close()


def test_pictures_are_chosen_whatever_came_out(engine: Engine) -> None:
    picture = engine.submit("ab", quality="high").result()
    auditor = Auditor(share=0.25, most=1000, seed=1)
    for _ in range(400):
        auditor.on_picture(picture)
    assert 70 <= len(auditor._backlog) <= 130
    everything = Auditor(share=1.0)
    everything.on_picture(replace(picture, certificate=""))
    assert not everything._backlog


@pytest.mark.parametrize("changed", [{"fingerprint": "other"}, {"choices": "other"}])
def test_pictures_of_before_a_reload_say_nothing_about_what_is_served_now(
    engine: Engine, changed: dict[str, str]
) -> None:
    """Other weights, or the same certificate's name for another setting: no evidence for or against it."""
    draw(engine, "low", 5)
    model = served()
    model.choices = engine.find_model("").choices
    if "fingerprint" in changed:
        model.source = Source(fingerprint=changed["fingerprint"])
    else:
        other = make_setting(model.choices.subject, "fixed @ ddim / trailing / 4")
        low = replace(model.choices.certificates["low"], spec=other.spec, policy=other.policy, steps=other.steps)
        model.choices = replace(model.choices, certificates={**model.choices.certificates, "low": low})
    engine.replace_models({"analytic": model})
    assert audit_all(engine) == []
    draw(engine, "low", 3)
    assert audit_all(engine)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"guidance": 5.0}, "guidance"), ({"negative_prompt": "x"}, "negative prompt"), ({"budget": 9.0}, "budget")],
)
def test_what_a_certificate_is_not_made_for_is_not_covered(
    engine: Engine, changed: dict[str, object], said: str
) -> None:
    model = engine.find_model("")
    setting = model.choices.certificates["high"]
    request = PictureRequest("ab", quality="high", **changed)  # type: ignore[arg-type]
    covered = cover(setting, _differences(request, model))
    assert covered.certificate == ""
    assert said in covered.promise
    assert cover(setting, _differences(PictureRequest("ab", guidance=2.0), model)) == setting


# -- What audits teach ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier() -> DomainClassifier:
    return fit_classifier(Inputs(TRAINING))[0]


def test_a_bandit_learns_from_audits_which_certificate_a_domain_gets(
    engine: Engine, classifier: DomainClassifier, tmp_path: Path
) -> None:
    """`high` is the only one that holds here; `low` is thought best before anything is seen, and is withdrawn late."""
    arms = (Arm("low", 0.9, 0.0), Arm("high", 0.05, 0.0))
    file = BanditFile(tmp_path / "bandit.json", DomainBandit(arms, price=2.0))
    choice = DomainChoice(classifier, file)
    auditor = engine.observer
    assert isinstance(auditor, Auditor)
    auditor.on_loss = choice.on_loss
    engine.observer = Observers([auditor, choice])
    model, asked = engine.find_model(""), []
    for seed in range(24):
        request = choice.choose(PictureRequest("a cart full of pears", seed=seed), model)
        asked.append(request.quality)
        assert engine.submit(request).result().run.text == "a cart full of pears"
        auditor.audit_next(engine)
    assert asked[0] == "low"
    assert set(asked[-6:]) == {"high"}
    (counts,) = file.read().counts.values()
    assert set(file.read().counts) == {"vehicle"}
    assert [one.audits for one in counts] == [one.pictures for one in counts] == [asked.count(arm.name) for arm in arms]
    assert counts[0].failures == asked.count("low")
    assert counts[1].failures == 0


def test_a_request_that_names_its_own_quality_keeps_it(
    engine: Engine, classifier: DomainClassifier, tmp_path: Path
) -> None:
    choice = DomainChoice(classifier, BanditFile(tmp_path / "b.json", DomainBandit((Arm("high"),))))
    for own in (PictureRequest("ab", quality="low"), PictureRequest("ab", policy="fixed")):
        assert choice.choose(own, engine.find_model("")) is own
    assert not (tmp_path / "b.json").exists()


# -- Settings by domain ---------------------------------------------------------------------------


def test_each_request_is_drawn_by_the_setting_of_its_prompts_domain(
    classifier: DomainClassifier, tmp_path: Path
) -> None:
    folder = save_domains(tmp_path, "fixed", {"vehicle": "interval(every=3, warmup=1, tail=1)"}, classifier)
    model = served(policy=f"by_domain(path={str(folder)!r}) @ ddim / trailing / 12")
    with Engine({"analytic": model}) as made:
        cart, strange = (made.submit(text).result() for text in ("a cart full of pears", "zxqv 4711"))
        with pytest.raises(RequestRefused, match="by_domain is made of files"):
            made.submit("a cart", policy="by_domain(path='/somewhere')")
    assert strange.calls == 12 > cart.calls
    assert any("by_domain(vehicle)" in attempt.plan.why for attempt in cart.run.past)
