"""The closed loop on a tiny model: a real server process, a real MLflow database, and weights that change under it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("mlflow")
pytest.importorskip("dagster")

import httpx
from hypothesis import given
from hypothesis import strategies as st
from track.loops import change_weights, tiny_pebble, write_loop
from typer.testing import CliRunner

from skipstone import cli
from skipstone.errors import OutputError, SpecError
from skipstone.evaluation.prompt import Prompt
from skipstone.serving.fingerprint import weights_fingerprint
from skipstone_track.connection import connect
from skipstone_track.loop.draw import divide
from skipstone_track.loop.engine import run_steps
from skipstone_track.loop.loop import Loop, open_loop
from skipstone_track.loop.pending import read_pending
from skipstone_track.loop.records import (
    RoundRecord,
    StepRecord,
    close_rounds,
    files_of,
    find_finished,
    read_rounds,
    read_step,
    round_folder,
    write_record,
)
from skipstone_track.loop.rollback import roll_back
from skipstone_track.loop.round import Step, StepFailed, StepResult
from skipstone_track.loop.server import end_left_over
from skipstone_track.loop.settings import DrawSettings, load_loop
from skipstone_track.registry import find, versions

DOWN = "http://127.0.0.1:9"  # nothing listens there


@dataclass
class Client:
    """Somebody who asks for pictures all the time."""

    loop: Loop
    answers: list[httpx.Response] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stopped.wait(0.3):  # audits are made while nothing else is drawn
            if (server := self.loop.server) is not None:
                body = {"prompt": "a red cup", "quality": "low", "seed": len(self.answers)}
                self.answers.append(httpx.post(f"{server.address}/v1/images/generations", json=body, timeout=60))


@dataclass
class Told:
    """What the rounds of the module's loop have done."""

    file: Path
    model: Path
    weights: list[str]
    rounds: list[RoundRecord]
    lines: list[str]
    answers: list[httpx.Response]
    waiting: int
    uploaded: str

    @property
    def place(self) -> Path:
        return load_loop(self.file).place

    def step(self, number: int, name: str) -> StepRecord:
        entry = next(entry for entry in self.rounds[number - 1].steps if entry.step == name)
        return read_step(self.place / entry.folder)

    def new(self, number: int) -> list[str]:
        return [entry.step for entry in self.rounds[number - 1].steps if entry.new]


@pytest.fixture(scope="module")
def told(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Round 1 while MLflow is down, then its upload; other weights under the server; rounds 2 and 3."""
    folder = tmp_path_factory.mktemp("looped")
    model = tiny_pebble(tiny_model, folder / "tiny")
    file, lines = write_loop(folder, model), list[str]()
    weights = [weights_fingerprint(model)]
    loop_settings = load_loop(file)
    with open_loop(replace(loop_settings, track=DOWN), lines.append) as loop:
        client = Client(loop)
        thread = threading.Thread(target=client.run)
        thread.start()
        try:
            loop.run_round()
            waiting = len(read_pending(loop_settings.place))
            loop.use_tracker(loop_settings.tracker)
            uploaded = "yes" if loop.upload() else "no"
            change_weights(model, 1.1)
            weights.append(weights_fingerprint(model))
            rounds = [read_rounds(loop_settings.place)[0], loop.run_round(), loop.run_round()]
        finally:
            client.stopped.set()
            thread.join()
    return Told(file, model, weights, rounds, lines, client.answers, waiting, uploaded)


def test_the_first_round_goes_through_without_a_tracker_which_is_told_later(told: Told) -> None:
    assert told.rounds[0].status == "done"
    assert told.new(1) == ["draw", "calibrate", "verify", "register", "deploy", "audit"]
    assert told.waiting == 1
    assert sum(line.startswith("track      MLflow is not reached") for line in told.lines) == 1
    assert told.uploaded == "yes"
    assert any("models:/tiny/1 was registered, as @champion" in line for line in told.lines)
    assert told.rounds[0].logged
    assert all(entry.run_id for entry in told.rounds[0].steps)


def test_other_weights_are_an_alarm_and_then_another_champion(told: Told) -> None:
    second = told.rounds[1]
    assert second.status == "done"
    assert "not those that the certificates were made for" in told.step(2, "watch").details["alarm"]
    assert told.new(2) == ["watch", "draw", "calibrate", "verify", "register", "deploy", "audit"]
    assert told.step(2, "audit").details["alarm"] == ""
    champion = find("models:/tiny@champion", load_loop(told.file).tracker)
    assert champion.number == 2
    assert champion.tags["fingerprint.weights"] == told.weights[1]
    assert champion.tags["prompts.calibration"] == told.step(2, "draw").details["sha256"]["calibrate"]


def test_each_audit_asks_for_other_samples(told: Told) -> None:
    steps = [told.step(1, "audit"), told.step(2, "watch"), told.step(2, "audit"), told.step(3, "watch")]
    assert len({step.prompts[0][1] for step in steps}) == 4
    assert all(step.figures["low.audited"] >= 3 for step in steps)  # the pictures of others are audited, too


def test_nobody_is_refused_and_each_picture_is_of_certified_weights(told: Told) -> None:
    assert len(told.answers) > 5
    assert {answer.status_code for answer in told.answers} == {200}
    facts = [answer.json()["data"][0] for answer in told.answers]
    assert {one["certificate"] for one in facts} == {"low"}
    order = [told.weights.index(one["fingerprint"]) for one in facts]
    assert order == sorted(order)
    assert set(order) == {0, 1}


def test_a_round_in_which_nothing_has_changed_runs_no_step_again(told: Told) -> None:
    assert told.rounds[2].status == "done"
    assert told.new(3) == ["watch", "deploy", "audit"]
    assert list(told.step(3, "audit").lines) == ["nothing new is deployed: see watch"]
    assert [one.number for one in versions("tiny", load_loop(told.file).tracker)] == [1, 2]


def test_rounds_are_runs_with_their_steps_inside(told: Told) -> None:
    with connect(load_loop(told.file).tracker) as client:
        run = client.get_run(told.rounds[1].run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["step.calibrate"].startswith("run ")
        inside = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        found = {one.data.tags["kind"]: one for one in inside}
        assert set(found) == {f"loop {entry.step}" for entry in told.rounds[1].steps}
        used = found["loop calibrate"].inputs.dataset_inputs[0].dataset
        assert told.step(2, "draw").details["sha256"]["calibrate"].startswith(used.digest)
        third = client.get_run(told.rounds[2].run_id).data.tags
        assert third["step.calibrate"] == f"unchanged since run {found['loop calibrate'].info.run_id}"


def test_a_file_of_a_step_that_was_changed_is_noticed(told: Told) -> None:
    folder = told.place / next(entry.folder for entry in told.rounds[1].steps if entry.step == "draw")
    record = read_step(folder)
    assert find_finished(folder, record.key)[0] == record
    assert find_finished(folder, "another key") == (None, [])
    file = folder / "held_out.jsonl"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole + b"\n")
        assert find_finished(folder, record.key) == (None, ["held_out.jsonl was changed"])
    finally:
        file.write_bytes(whole)


def test_the_page_and_status_say_what_happened(told: Told) -> None:
    page = (told.place / "index.html").read_text()
    assert "Round 2: done" in page
    assert "ALARM: the weights in" in page
    assert "data:image/webp;base64," in page
    said = CliRunner().invoke(cli.app, ["loop", "status", str(told.file)])
    assert said.exit_code == 0, said.output
    assert "Round 3" in said.output
    assert "(calibrate)" in said.output
    assert "@champion: models:/tiny/2" in said.output
    found = json.loads(CliRunner().invoke(cli.app, ["loop", "status", str(told.file), "--json"]).output)
    assert [one["status"] for one in found["rounds"]] == ["done"] * 3
    assert (found["champion"]["number"], found["pending"], found["not logged"]) == (2, [], [])


def test_rollback_brings_weights_and_certificates_back_together(told: Told) -> None:
    """The last test of the loop: it changes what is in place."""
    settings, lines = load_loop(told.file), list[str]()
    with pytest.raises(SpecError, match=r"has no version 7\. It has: 1, 2"):
        roll_back(settings, 7, lines.append)
    assert roll_back(settings, None, lines.append).number == 1
    assert weights_fingerprint(told.model) == told.weights[0]
    assert find("models:/tiny@champion", settings.tracker).number == 1
    with pytest.raises(SpecError, match="no version before"):
        roll_back(settings, None, lines.append)


# -- the file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drow": {}}, "no key 'drow'. Did you mean 'draw'?"),
        ({"calibrate": {"quality": {}}}, "calibrate has no key 'quality'. Did you mean 'qualities'?"),
        ({"calibrate": {"qualities": {}}}, "expected at least one"),
        ({"calibrate": {"qualities": {"low": "psnr > 30"}}}, "psnr > 30"),
        ({"calibrate": {"qualities": {"../low": "psnr >= 30 @ 90%"}}}, "qualities: expected a letter"),
        ({"calibrate": {"confidence": 1.5}}, "confidence to be a number"),
        ({"draw": {"held_out": 0}}, "held_out to be a whole number in 1"),
        ({"draw": {"seed": "zero"}}, "draw.seed"),
        ({"tune": {"calls": [8]}}, "draw.tune: expected the number of prompts"),
        ({"audit": {"minutes": -1}}, "minutes to be a number"),
        ({"deploy": {"address": "http://localhost:1"}}, "address and admin_key belong together"),
        ({"deploy": {"audit": 2}}, "audit to be a number in [0, 1]"),
        ({"register": {"alias": "the best"}}, "alias: expected a letter"),
        ({"name": "a b"}, "name: expected a letter"),
        ({"rounds": 0}, "rounds to be a whole number in 1"),
        ({"track": "mlflw"}, "Did you mean 'mlflow'?"),
        ({"folder": " "}, "folder: expected a folder"),
    ],
)
def test_a_file_that_is_wrong_is_a_sentence(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as stop:
        load_loop(write_loop(tmp_path, "pebble", **changes))
    assert said in str(stop.value)
    assert "loop.yaml" in str(stop.value) or "track" in said


@pytest.mark.parametrize("text", [None, "name: [", "", "name: x"])
def test_a_file_that_is_none(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "loop.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SpecError, match=r"loop\.yaml"):
        load_loop(file)


def test_the_example_is_a_loop() -> None:
    settings = load_loop(Path(__file__).parents[2] / "examples" / "loop" / "loop.yaml")
    assert settings.registered_name == "pebble"
    assert list(settings.calibrate.qualities) == ["medium", "low"]


def test_a_model_that_cannot_be_served_is_said(tmp_path: Path) -> None:
    file = write_loop(tmp_path, "nowhere/at/all")
    from skipstone.errors import ModelError

    with pytest.raises(ModelError, match="model: nowhere/at/all"), open_loop(load_loop(file), print):
        pass
    assert not (tmp_path / "loop").exists()


# -- prompts ----------------------------------------------------------------------------------------


@given(st.sets(st.text("abcdef", min_size=1), min_size=4, max_size=30), st.randoms(use_true_random=False))
def test_no_prompt_is_in_two_parts_and_the_order_of_the_file_does_not_matter(texts: set[str], chance: Any) -> None:
    settings = DrawSettings("some", tune=1, held_out=2)
    prompts = [Prompt(text, text) for text in sorted(texts)]
    parts = divide(prompts, settings)
    found = [prompt.text for part in parts.values() for prompt in part]
    assert sorted(found) == sorted(texts)
    assert [len(parts["tune"]), len(parts["held_out"])] == [1, 2]
    chance.shuffle(prompts)
    assert divide(prompts, settings) == parts


def test_too_few_prompts_are_said() -> None:
    with pytest.raises(SpecError, match=r"expected more than 40 prompts .* got 2"):
        divide([Prompt("a", "a"), Prompt("b", "b")], DrawSettings("some"))


# -- the engine -------------------------------------------------------------------------------------


@pytest.fixture
def steps() -> Callable[..., list[Step]]:
    return lambda *names: [Step(name, lambda at, folder: StepResult()) for name in names]


def test_steps_run_in_order_and_the_first_that_fails_ends_them(tmp_path: Path, steps: Any) -> None:
    ran: list[str] = []

    def run(step: Step) -> None:
        ran.append(step.name)
        if step.name == "verify":
            raise StepFailed("the promise fails")

    run_steps(steps("draw", "calibrate"), run, tmp_path, "one-loop")
    with pytest.raises(StepFailed, match="the promise fails"):
        run_steps(steps("draw", "verify", "register"), run, tmp_path, "one-loop")
    assert ran == ["draw", "calibrate", "draw", "verify"]


def test_ctrl_c_ends_a_step(tmp_path: Path, steps: Any) -> None:
    ended: list[str] = []

    def run(step: Step) -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        for _ in range(300):
            time.sleep(0.1)
        ended.append(step.name)

    with pytest.raises(KeyboardInterrupt):
        run_steps(steps("draw", "calibrate"), run, tmp_path, "loop")
    assert not ended


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_server_that_outlived_its_loop_is_ended_and_no_other_process(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen([*sleep, str(tmp_path / "admin_key.txt")]) as mine, subprocess.Popen(sleep) as other:
        try:
            assert not end_left_over(tmp_path)
            (tmp_path / "server.pid").write_text(str(other.pid))
            assert not end_left_over(tmp_path)
            (tmp_path / "server.pid").write_text(str(mine.pid))
            while not Path(f"/proc/{mine.pid}/cmdline").read_bytes():
                time.sleep(0.01)
            assert end_left_over(tmp_path)
            assert mine.wait(30) == -signal.SIGTERM
            assert other.poll() is None
        finally:
            mine.kill()
            other.kill()


def test_a_round_that_was_cut_off_is_not_running_any_more(tmp_path: Path) -> None:
    write_record(round_folder(tmp_path, 1), RoundRecord(1, "today"))
    close_rounds(tmp_path)
    assert [(one.status, one.words) for one in read_rounds(tmp_path)] == [("stopped", "cut off")]


def test_a_damaged_record_is_a_sentence(tmp_path: Path) -> None:
    folder = round_folder(tmp_path, 1)
    folder.mkdir(parents=True)
    (folder / "round.json").write_text("{")
    with pytest.raises(OutputError, match=r"round\.json"):
        read_rounds(tmp_path)


def test_the_sum_of_a_step_is_that_of_its_files(tmp_path: Path) -> None:
    assert files_of(tmp_path) == {}
    (tmp_path / "a").write_text("x")
    write_record(tmp_path, StepRecord("draw", "key", {}))
    assert list(files_of(tmp_path)) == ["a"]


def test_the_file_can_be_written_in_any_order(tmp_path: Path) -> None:
    file = write_loop(tmp_path, "pebble")
    found = yaml.safe_load(file.read_text())
    first = load_loop(file)
    file.write_text(yaml.safe_dump(dict(reversed(list(found.items()))), sort_keys=False))
    assert load_loop(file) == first
