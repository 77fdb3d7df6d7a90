"""A benchmark does not test a policy on prompts that it was made with."""

from __future__ import annotations

from pathlib import Path

import pytest
from track.folders import CERTIFICATE

import skipstone
from skipstone.errors import BenchError
from skipstone.evaluation.engine_subject import EngineSubject
from skipstone.evaluation.prompts import load_prompts
from skipstone.policies.seen_prompts import SEEN_FILE, digest_prompt, seen_prompts, write_seen
from skipstone.policies.student import Student, find_student
from skipstone_bench.benchmark import Benchmark, BenchSettings

CALIBRATED = [prompt.text for prompt in load_prompts("pebble-tuning")]


def planned(prompts: Path | str, **more: object) -> Benchmark:
    options = {"prompts": str(prompts), "limit": 2, "tuned": 1, "policies": [str(CERTIFICATE)], "peers": ["none"]}
    return Benchmark.from_settings(EngineSubject("pebble", "pebble", None), BenchSettings.from_options(options | more))


def test_a_calibrated_policy_knows_its_prompts() -> None:
    seen = seen_prompts(skipstone.load_policy(str(CERTIFICATE)))
    assert seen == {digest_prompt(text) for text in CALIBRATED}
    assert seen_prompts(skipstone.policy("balanced")) == frozenset()


def test_a_student_knows_what_it_learnt_from(tmp_path: Path) -> None:
    (tmp_path / "student.json").write_bytes((find_student("pebble-consistency-2") / "student.json").read_bytes())
    assert seen_prompts(Student(str(tmp_path))) == frozenset()
    (tmp_path / SEEN_FILE).write_bytes(write_seen(["a cat", "a dog ", "a cat"]))
    assert seen_prompts(Student(str(tmp_path))) == {digest_prompt("a cat"), digest_prompt("a dog")}


def test_seen_prompts_are_refused_and_others_are_not(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"was made with 2 of the 2 prompts, such as 'a .*--allow-seen"):
        planned("pebble-tuning")
    assert planned("pebble-tuning", allow_seen=True).rows
    one = tmp_path / "prompts.txt"
    one.write_text(f"a cat on a red background\n{CALIBRATED[0]}\na dog on a red background\n")
    with pytest.raises(BenchError, match=r"was made with 1 of the \d prompts"):
        planned(one, limit=None)
    assert planned("pebble").rows
