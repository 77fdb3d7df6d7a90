"""Audits: one test that goes on, quiet while the promise holds and loud when it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PROMPTS

import skipstone
from skipstone.calibration.sequential import Watchdog
from skipstone.calibration.target import Target
from skipstone.errors import CertificateError, SpecError
from skipstone.evaluation.prompts import Prompt
from skipstone.policies.certified import Certified


def test_an_audit_goes_on_where_the_last_one_ended(saved: Path, pipe: Any, cache: Path) -> None:
    first = skipstone.audit(saved, pipe, samples=3, cache=cache)
    second = skipstone.audit(saved, pipe, samples=2, cache=cache)
    lines = [json.loads(line) for line in (saved / "audit.jsonl").read_text().splitlines()]
    assert (first.found.n, second.found.n, len(lines)) == (3, 5, 5)
    assert second.found.state[:3] == first.found.state
    target = Target.parse("psnr >= 20 @ 60%")
    assert second.found == Watchdog(target, 0.05).update([line["value"] for line in lines])
    assert len({line["seed"] for line in lines}) == 5
    assert {line["prompt"] for line in lines} <= set(PROMPTS)
    assert not second.alarm
    assert "No alarm" in second.words[-2]
    assert "own prompts" in second.words[1]
    assert "holds for these prompts only" in second.words[-1]
    assert len({line["prompt"] for line in lines}) == 5  # none twice, while there are others


def test_a_promise_that_is_broken_is_noticed(policy: Certified, saved: Path, pipe: Any, cache: Path) -> None:
    """Its target is moved to where the same pictures miss it."""
    replace(policy, certificate=replace(policy.certificate, target="psnr >= 98 @ 60%")).save_pretrained(saved)
    found = skipstone.audit(saved, pipe, samples=12, prompts=["a gray frog", "a pink bus"], cache=cache)
    if found.found.interval.value < 0.5:  # the policy skips: no picture is the full run's own
        assert found.alarm
        assert "ALARM" in found.words[-2]
        assert "of your own" in found.words[1]
    assert found.repeated_prompts  # two prompts for twelve samples
    later = skipstone.audit(saved, pipe, samples=1, prompts=PROMPTS, cache=cache)
    assert later.alarm == found.alarm  # once raised, it stays


def test_every_group_has_a_test_of_its_own(policy: Certified, pipe: Any, cache: Path, tmp_path: Path) -> None:
    groups = {
        name: {"n": policy.point.n / 2, "failures": 0, "p": 0.6 ** (policy.point.n / 2)} for name in ("cats", "dogs")
    }
    point = replace(policy.point, groups=groups, failures=0, p=groups["cats"]["p"], value=1.0, high=1.0)
    points = tuple(point if p == policy.point else p for p in policy.certificate.points)
    grouped = replace(policy, certificate=replace(policy.certificate, points=points), point=point)
    folder = grouped.save_pretrained(tmp_path / "groups")
    prompts = [Prompt(f"{i}", f"a {'red' * i} cat", "cats") for i in (1, 2)] + [Prompt("d", "a red dog", "dogs")]
    found = skipstone.audit(folder, pipe, samples=3, prompts=prompts, cache=cache)
    assert {name: part.n for name, part in found.each.items()} == {"cats": 2, "dogs": 1}
    assert not found.repeated_prompts
    assert not found.used_own_prompts
    assert any(line.startswith("cats: ") and "of the 40 that raise" in line for line in found.words)
    with pytest.raises(SpecError, match="the promise is to each of cats, dogs"):
        skipstone.audit(folder, pipe, samples=1, prompts=PROMPTS, cache=cache)


def test_a_torn_line_is_dropped(saved: Path, pipe: Any, cache: Path) -> None:
    skipstone.audit(saved, pipe, samples=2, cache=cache)
    path = saved / "audit.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert skipstone.audit(saved, pipe, samples=1, cache=cache).found.n == 2


def test_a_test_cannot_be_changed_while_it_runs(saved: Path, pipe: Any, cache: Path) -> None:
    skipstone.audit(saved, pipe, samples=1, cache=cache)
    with pytest.raises(SpecError, match=r"was begun with a false alarm of 0\.05, not 0\.2"):
        skipstone.audit(saved, pipe, samples=1, false_alarm=0.2, cache=cache)


def test_another_model_is_not_audited(saved: Path, tiny_model: Path, cache: Path) -> None:
    with pytest.raises(
        CertificateError, match="pipeline is StableDiffusionPipeline in the certificate and Pebble here"
    ):
        skipstone.audit(saved, skipstone.Pebble.load(tiny_model), samples=1, cache=cache)
    assert not (saved / "audit.jsonl").exists()


def test_what_cannot_be_audited_is_refused(saved: Path, pipe: Any, tmp_path: Path) -> None:
    skipstone.save_policy("third_order", tmp_path / "bare")
    with pytest.raises(SpecError, match="without a certificate"):
        skipstone.audit(tmp_path / "bare", pipe)
    with pytest.raises(SpecError, match="at least 1 sample"):
        skipstone.audit(saved, pipe, samples=0)
    with pytest.raises(SpecError, match="false alarm"):
        skipstone.audit(saved, pipe, false_alarm=0.7)
    with pytest.raises(SpecError, match="does not say where its model is"):
        skipstone.audit(saved)
