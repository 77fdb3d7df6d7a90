"""Certificates that somebody has damaged or edited: one error that says what is wrong, never another promise."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import skipstone
from skipstone.calibration.risk import binomial_p
from skipstone.errors import CertificateError, SpecError
from skipstone.integrations.identity import scheduler_from_config
from skipstone.policies import certificate_files
from skipstone.policies.certified import Certified


def make_point(setting: str, calls: float, failures: int, accepted: bool, **more: Any) -> dict[str, Any]:
    """A tested setting of 40 prompts under 'psnr >= 30 @ 80%'."""
    return {
        "setting": setting,
        "way": "own / 20",
        "steps": 20,
        "calls": calls,
        "value": 1 - failures / 40,
        "low": 0.0,
        "high": 1.0,
        "n": 40,
        "failures": failures,
        "p": binomial_p(failures, 40, 1 - 0.8),
        "accepted": accepted,
        **more,
    }


@cache
def _document() -> dict[str, Any]:
    points = [
        make_point("interval(every=4)", 5.0, 9, False),
        make_point("interval(every=3)", 7.0, 3, True),
        make_point("interval(every=2)", 10.0, 1, True),
    ]
    return {
        "policy": "interval(every=3)",
        "skipstone": "0.1.0",
        "notes": {},
        "certificate": {
            "target": "psnr >= 30 @ 80%",
            "promise": "at least 80 % of prompts have psnr >= 30",
            "confidence": 0.9,
            "method": "Learn then Test",
            "reference": "fixed @ own / 20",
            "full": "fixed @ own / 20",
            "points": points,
            "full_calls": 20.0,
            "model": "toy",
            "identity": {"pipeline": "Pebble", "weights": "abc"},
            "call": {"guidance_scale": 3.0},
            "prompts": {"source": "a list", "count": 60, "test": 40},
            "seed": 0,
            "spent": {"search": 100.0},
            "versions": {"skipstone": "0"},
            "date": "today",
            "source": {"model": "toy", "settings": [], "as_guest": False},
        },
    }


@pytest.fixture
def document() -> dict[str, Any]:
    """What a policy.json of version 0.1.0 holds, without a digest."""
    return copy.deepcopy(_document())


def write(folder: Path, document: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / "policy.json").write_bytes(text.encode(errors="surrogateescape"))


def load(folder: Path, document: Any) -> Certified:
    write(folder, document)
    found = skipstone.load_policy(folder)
    assert isinstance(found, Certified)
    return found


def test_what_agrees_is_read(document: dict[str, Any], tmp_path: Path) -> None:
    assert load(tmp_path, document).point.setting == "interval(every=3)"


# -- Contradictions ---------------------------------------------------------------------------------


def at(document: dict[str, Any], index: int = 1) -> dict[str, Any]:
    point: dict[str, Any] = document["certificate"]["points"][index]
    return point


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "the promised setting": (
        lambda d: at(d).update(setting="third_order(tol=1000, max_skip=99)"),
        r"the policy is 'interval\(every=3\)', and the promise is made for 'third_order\(tol=1000, max_skip=99\)'",
    ),
    "the policy": (lambda d: d.update(policy="interval(every=9)"), "the policy is 'interval"),
    "another accepted setting": (lambda d: at(d, 2).update(setting="interval(every=9)", calls=1.0), "the policy is"),
    "accepted": (lambda d: at(d, 0).update(accepted=True), r"accepted with p = 0\.73.* at a confidence of 0\.9"),
    "accepted by the search": (lambda d: at(d).update(p=None), "accepted with p = None"),
    "p": (lambda d: at(d, 0).update(p=0.01, accepted=True), r"p = 0\.01 of 9 failures of 40 prompts, whose exact test"),
    "failures": (lambda d: at(d).update(failures=0), "0 failures of 40 prompts, and a share of 0.925"),
    "failures and share": (lambda d: at(d).update(failures=0, value=1.0), "whose exact test has p = 0.000132"),
    "more failures than prompts": (lambda d: at(d).update(failures=90, value=-1.25, low=-2.0), "has p = nan"),
    "prompts": (lambda d: at(d).update(n=400), "400 prompts"),
    "no prompts": (lambda d: at(d).update(n=0), "0 prompts"),
    "share of the target": (lambda d: d["certificate"].update(target="psnr >= 30 @ 99%"), "whose exact test"),
    "confidence": (lambda d: d["certificate"].update(confidence=0.999), "accepted with p"),
    "confidence above 1": (lambda d: d["certificate"].update(confidence=1.5), r"expected a number in \(0\.5, 1\)"),
    "mean": (lambda d: d["certificate"].update(target="psnr >= 30 @ mean"), "failures under the target"),
    "a target without an end": (lambda d: d["certificate"].update(target=">= " + "1" * 10**6), "expected 'METRIC"),
    "no target": (lambda d: d["certificate"].update(target="good"), "expected 'METRIC >= LEVEL @ PERCENT%'"),
    "steps": (lambda d: at(d).update(steps=50), "50 steps, and the sampler is 'own / 20'"),
    "sampler": (lambda d: at(d).update(way="own / 50"), "20 steps, and the sampler is 'own / 50'"),
    "interval": (lambda d: at(d).update(low=0.99), "a value of 0.925 in 0.99 to 1"),
    "a policy as a sampler": (lambda d: at(d).update(fixed=True), "has the policy 'fixed'"),
    "nothing accepted": (lambda d: [p.update(accepted=False) for p in d["certificate"]["points"]], "got none"),
    "no points": (lambda d: d["certificate"].update(points=[]), "got none"),
    "no calls": (lambda d: d["certificate"].update(full_calls=0.0), "full_calls: expected a number above 0"),
    "groups": (
        lambda d: at(d).update(groups={"cats": {"n": 30, "failures": 1, "p": 0.01}}),
        "3 failures of 40 prompts, and other sums over its groups",
    ),
    "p of groups": (
        lambda d: at(d).update(groups={x: {"n": 20, "failures": f, "p": 0.01} for x, f in (("a", 1), ("b", 2))}),
        r"p = 0\.01 of 1 failures of 20 prompts, whose exact test has p = 0\.069",
    ),
    "group without numbers": (lambda d: at(d).update(groups={"cats": {}}), "expected n, failures and p of each"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_certificate_that_contradicts_itself_is_refused(name: str, document: dict[str, Any], tmp_path: Path) -> None:
    change, said = CONTRADICTIONS[name]
    change(document)
    with pytest.raises(SpecError, match=rf"policy\.json: the certificate contradicts itself: .*{said}"):
        load(tmp_path, document)


@given(st.integers(1, 400), st.data())
def test_the_test_that_is_made_again_is_that_of_the_calibration(n: int, data: st.DataObject) -> None:
    failures = data.draw(st.integers(0, n))
    risk = data.draw(st.sampled_from([0.01, 0.1, 0.4, 1 - 0.9]))
    mine = certificate_files._binomial_p(failures, n, risk)
    assert mine == pytest.approx(binomial_p(failures, n, risk), rel=certificate_files.P_TOLERANCE / 10, abs=1e-300)


def test_any_edit_of_what_skipstone_has_written_is_refused(saved: Path) -> None:
    """Also one that contradicts nothing: the policy's threshold and the promised one alike."""
    written = json.loads((saved / "policy.json").read_text())
    point = next(p for p in written["certificate"]["points"] if p["setting"] == written["policy"])
    written["policy"] = point["setting"] = "error_control(tol=99.0)"
    (saved / "policy.json").write_text(json.dumps(written))
    with pytest.raises(SpecError, match="was changed after skipstone had written it"):
        skipstone.load_policy(saved)


# -- Damage -----------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inside:
        yield from places(one, (*path, name))


def put(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    target: Any = document
    for name in path[:-1]:
        target = target[name]
    if value is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = value


WRONG = [..., None, True, -1, 10**200, 0.5, float("nan"), float("inf"), "", "x", "\ud800", [], [[]], {}, {"n": "x"}]


@settings(max_examples=150)
@given(st.sampled_from(list(places(_document()))[1:]), st.sampled_from(WRONG))
def test_any_value_in_any_place_is_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[Any, ...], value: Any
) -> None:
    document = copy.deepcopy(_document())
    put(document, path, value)
    folder = tmp_path_factory.getbasetemp() / "any"
    write(folder, document)
    try:
        found = skipstone.load_policy(folder)
        if isinstance(found, Certified):
            found.differences({"pipeline": "Pebble", "weights": 1})
            found.call_differences({"guidance_scale": 3.0}, ["guidance_scale"])
            found.save_pretrained(folder.parent / "any-again")
            assert skipstone.load_policy(folder.parent / "any-again") == found
    except SpecError as e:
        assert len(str(e)) < 600  # noqa: PT017  (either is right)
        str(e).encode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "at most 50 lists and objects inside each other"),
        ('{"policy": "fixed"', "expected JSON"),
        ('{"policy": "fixed", "policy": "third_order"}', 'expected each name once in an object, got "policy" twice'),
        ('{"policy": ["fixed"]}', "policy: expected text, got a list of 1"),
        ('{"policy": "fixed", "certificate": []}', "certificate: expected an object or null, got a list of 0"),
        ('{"policy": "fixed", "certificate": {}}', "certificate: expected a field 'target', got none"),
        ('{"policy": "fixed", "more": 1}', 'expected no field "more"'),
        ('{"policy": "auto(certificate=\'FOLDER\')"}', "names its own folder"),
        ("\udcff\udcfe", "is not text: expected UTF-8"),
    ],
)
def test_what_is_no_saved_policy_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=said) as refused:
        load(tmp_path, text.replace("FOLDER", str(tmp_path)))
    assert str(tmp_path) in str(refused.value)


def test_an_identity_that_is_a_list_is_refused_by_its_place(document: dict[str, Any], tmp_path: Path) -> None:
    document["certificate"]["identity"] = []
    with pytest.raises(SpecError, match=r"policy\.json: certificate\.identity: expected an object, got a list of 0"):
        load(tmp_path, document)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "policy.json")
    for folder in (tmp_path, tmp_path / "nowhere", "a\0b", "x" * 5000):
        with pytest.raises(SpecError, match="Expected a folder with a policy"):
            skipstone.load_policy(folder)


def test_notes_that_json_cannot_hold_are_saved_as_texts(tmp_path: Path) -> None:
    skipstone.save_policy("fixed", tmp_path, psnr=float("inf"), loss=[float("nan")])
    assert skipstone.spell(skipstone.load_policy(tmp_path)) == "fixed"
    assert json.loads((tmp_path / "policy.json").read_text())["notes"] == {"psnr": "Infinity", "loss": ["NaN"]}


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"class": "DiffusionPipeline"},
        {"class": "NoScheduler"},
        {"class": 3},
        {"class": "DDIMScheduler", "num_train_timesteps": "many"},
        {"class": "DDIMScheduler", "beta_schedule": "none"},
    ],
)
def test_a_scheduler_that_cannot_be_made_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(CertificateError, match="The certificate brings"):
        scheduler_from_config(facts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": 3}, r"line 1\.prompt: expected text, got 3"),
        ({"value": "high"}, r"line 1\.value: expected a number or null, got \"high\""),
        ({"false_alarm": float("nan")}, r"line 1\.false_alarm: expected a number"),
        ({"seed": ...}, "line 1: expected a field 'seed', got none"),
    ],
)
def test_a_damaged_line_of_an_audit_is_refused(change: dict[str, Any], said: str, saved: Path, pipe: Any) -> None:
    whole = {"prompt": "a", "seed": 0, "value": 1.0, "calls": 1.0, "false_alarm": 0.05, "date": "today"}
    line = {name: value for name, value in {**whole, **change}.items() if value is not ...}
    (saved / "audit.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(SpecError, match=rf"audit\.jsonl: {said}"):
        skipstone.audit(saved, pipe, samples=1)
