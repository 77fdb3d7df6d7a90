"""Students on the server: named by the operator, never by a path; alone or in company the same picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from skipstone import registry
from skipstone.engine.drivers import denoise
from skipstone.errors import ModelError, SpecError
from skipstone.evaluation.engine_subject import EngineSubject
from skipstone.evaluation.pixels import to_uint8
from skipstone.policies.student import Student, find_student
from skipstone.serving import Engine, PictureRequest
from skipstone.serving.batcher import Forward
from skipstone.serving.loading import ModelLoader
from skipstone.serving.observers import Observer
from skipstone.serving.refusals import RequestRefused

PROMPT = "a red apple on a blue background"
ONE, TWO = "pebble-progressive-1", "pebble-consistency-2"


class Forwards(Observer):
    def __init__(self) -> None:
        self.seen: list[Forward] = []

    def on_forward(self, forward: Forward) -> None:
        self.seen.append(forward)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    pytest.importorskip("peft")
    folder = str(find_student(TWO))  # a folder of the operator's, which no answer may tell
    loader = ModelLoader({"pebble": "pebble"}, students={ONE: ONE, "mine": folder})
    with Engine(loader.load_all(), rows=16, observer=Forwards()) as made:
        yield made


@pytest.mark.parametrize(("policy", "name", "calls"), [(f"student(path={ONE!r})", ONE, 0.5), ("mine", TWO, 1.0)])
def test_a_student_draws_as_it_does_alone(engine: Engine, policy: str, name: str, calls: float) -> None:
    """In company of guided rows and of another student."""
    others = [PictureRequest(PROMPT, seed=k, policy=p) for k in range(3) for p in ("fixed @ 6", ONE, "mine")]
    futures = engine.submit_all([PictureRequest(PROMPT, seed=9, policy=policy), *others])
    found, *_ = [future.result() for future in futures]
    subject = EngineSubject("pebble", "pebble")
    alone = subject.model_of(Student(name))
    problem = alone.problem(PROMPT, 9, 50, "trailing")
    expected = denoise(alone.backbone, problem, registry.parse("solver", "ddim"), Student(name))
    assert [a.t for a in found.run.past] == [a.t for a in expected.run.past]
    assert found.calls == calls == expected.run.cost
    assert np.abs(found.pixels.astype(int) - to_uint8(alone.decode([expected.x])[0])).max() <= 1


def test_rows_of_a_student_share_calls_and_take_one_each(engine: Engine) -> None:
    seen = engine.observer
    assert isinstance(seen, Forwards)
    seen.seen.clear()
    for future in engine.submit_all([PictureRequest(PROMPT, seed=k, policy="mine") for k in range(8)]):
        future.result()
    assert all(forward.rows == forward.samples for forward in seen.seen)
    assert sum(forward.rows for forward in seen.seen) == 16
    assert len(seen.seen) < 16


CASCADE = "cascade(path='mine', limit={limit}, then='fixed')"


@pytest.mark.parametrize("limit", [0.0, 1000.0])
def test_a_cascade_draws_as_it_does_alone_and_shares_calls_with_both_networks(engine: Engine, limit: float) -> None:
    seen = engine.observer
    assert isinstance(seen, Forwards)
    seen.seen.clear()
    spec = CASCADE.format(limit=limit) + " @ ddim / trailing / 6"
    requests = [
        PictureRequest(PROMPT, seed=k, policy=policy) for k in range(3) for policy in (spec, "mine", "fixed @ 6")
    ]
    found = [future.result() for future in engine.submit_all(requests)]
    subject = EngineSubject("pebble", "pebble")
    policy = registry.parse("policy", CASCADE.format(limit=limit).replace("'mine'", repr(TWO)))
    pair = subject.model_of(policy)
    for k, picture in enumerate(found[::3]):
        problem = pair.problem(PROMPT, k, 6, "trailing")
        expected = denoise(pair.backbone, problem, registry.parse("solver", "ddim"), policy)
        assert picture.calls == expected.run.cost == (1.0 if limit else 7.0)
        assert np.abs(picture.pixels.astype(int) - to_uint8(pair.decode([expected.x])[0])).max() <= 1
    assert "/" not in found[0].promise
    together = 2 + 6 if limit else 2 + 6 + 6  # calls of the student, and of the model, that are enough for all
    assert len(seen.seen) <= together + 2


@pytest.mark.parametrize(
    "then", ["by_domain(path='/etc')", "agent(path='/etc')", f"student(path={ONE!r})", "auto", "no_such_policy"]
)
def test_what_a_cascade_goes_on_with_names_no_files(engine: Engine, then: str) -> None:
    with pytest.raises((RequestRefused, SpecError)):
        engine.submit(PROMPT, policy=f"cascade(path='mine', then={then!r})")
    with pytest.raises(RequestRefused, match="Known"):
        engine.submit(PROMPT, policy=f"cascade(path={TWO!r})")


def test_answers_name_the_student_and_not_its_folder(engine: Engine) -> None:
    picture = engine.submit(PROMPT, policy="student(path='mine', steps=4)").result()
    assert picture.setting == "student(path='mine', steps=4) @ ddim / trailing / 50"
    assert "/" not in picture.promise
    assert engine.submit(PROMPT, policy=picture.setting).result().calls == 2
    with pytest.raises(SpecError, match="as mine was trained") as refused:
        engine.submit(PROMPT, policy="student(path='mine', steps=3)")
    assert "students/" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        TWO,  # shipped, and not the operator's
        str(find_student(TWO)),
        "../mine",
        "./mine",
        "mine/",
        "mine/../mine",
        "/etc/passwd",
        "\u202emine",
        "ｍｉｎｅ",
        "mine\\x00",
        "~",
    ],
)
def test_a_student_is_one_of_the_operators_names(engine: Engine, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of another name is looked for on disk."""
    opened: list[object] = []
    monkeypatch.setattr(Path, "is_file", lambda path: opened.append(path) or False)
    with pytest.raises(RequestRefused, match=f"Known: {ONE}, mine"):
        engine.submit(PROMPT, policy=f"student(path='{name}')")
    assert not opened


@pytest.mark.parametrize("more", [{"guidance": 3.0}, {"negative_prompt": "blue"}])
def test_a_student_takes_no_guidance(engine: Engine, more: dict[str, object]) -> None:
    with pytest.raises(RequestRefused, match="own guidance"):
        engine.submit(PROMPT, policy="mine", **more).result()


def test_a_policy_of_a_program_runs_no_network_that_is_not_served(engine: Engine) -> None:
    assert engine.submit(PROMPT, policy=Student(ONE)).result().calls == 0.5
    with pytest.raises(RequestRefused, match="Known"):
        engine.submit(PROMPT, policy=Student("pebble-progressive-2"))


def test_a_student_can_be_the_default() -> None:
    pytest.importorskip("peft")
    served = ModelLoader({"pebble": "pebble"}, "mine", {"mine": ONE}).load_all()["pebble"]
    assert served.choices.default.spec == "student(path='mine') @ ddim / trailing / 50"
    other = ModelLoader({"pebble": "pebble"}, f"student(path={ONE!r})").load_all()["pebble"]
    assert other.choices.default.policy.network == ONE


def test_a_student_of_no_served_model_is_said() -> None:
    with pytest.raises(ModelError, match="expected a student of a served model"):
        ModelLoader({"dit": "pebble-dit"}, students={"mine": ONE}).load_all()
