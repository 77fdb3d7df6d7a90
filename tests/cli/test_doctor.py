"""`skipstone doctor`: versions, machine, model, and whether certificates are valid here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from outcome import Shell

import skipstone

FIXTURE = Path(__file__).parents[1] / "fixtures" / "v0_1_0" / "certificate"


def look(shell: Shell, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = shell("doctor", "--json", *arguments)
    assert done.code == code, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_a_sound_installation_has_no_problems(shell: Shell) -> None:
    import torch

    found = look(shell)
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["skipstone"] == skipstone.__version__
    assert found["device"]["default"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert 0 < found["memory"]["available"] < found["memory"]["total"] < 1e5
    assert (found["model"]["name"], found["model"]["steps"], found["model"]["policy"]) == ("pebble", 50, "balanced")
    assert found["certificates"] == found["problems"] == []


def test_a_certificate_of_this_folder_is_held_against_its_model(shell: Shell, tmp_path: Path) -> None:
    shutil.copytree(FIXTURE, tmp_path / "mine")
    skipstone.save_policy("stride", tmp_path / "bare")  # no certificate: nothing is promised
    (one,) = look(shell)["certificates"]
    assert (one["folder"], one["valid"], one["made with"]["skipstone"]) == ("mine", True, "0.1.0")
    said = shell("doctor", "mine").out
    assert "mine  valid  at least 60 % of prompts have psnr >= 20" in said


def test_a_certificate_of_another_model_is_not_valid(shell: Shell, tmp_path: Path) -> None:
    copy = tmp_path / "other"
    shutil.copytree(FIXTURE, copy)
    text = (copy / "policy.json").read_text()
    certified = skipstone.load_policy(copy)
    assert isinstance(certified, skipstone.Certified)
    weights = certified.certificate.identity["weights"]
    (copy / "policy.json").write_text(text.replace(weights, "0" * len(weights)))
    found = look(shell, code=1)
    assert not found["certificates"][0]["valid"]
    assert found["problems"][0].startswith("other: ")
    assert "NOT VALID" in shell("doctor").out


def test_an_alarm_of_an_audit_ends_a_certificate(shell: Shell, tmp_path: Path) -> None:
    copy = tmp_path / "mine"
    shutil.copytree(FIXTURE, copy)
    line = json.loads((copy / "audit.jsonl").read_text().splitlines()[0])
    missed = "".join(json.dumps({**line, "value": 1.0, "seed": k}) + "\n" for k in range(60))
    (copy / "audit.jsonl").write_text(missed)
    (problem,) = look(shell, code=1)["problems"]
    assert "An audit has raised the alarm" in problem


@pytest.mark.parametrize("line", ['{"false_alarm": "x"}', "{}", "[1]", "not json\nnot json"])
def test_damaged_audits_are_a_problem(shell: Shell, tmp_path: Path, line: str) -> None:
    shutil.copytree(FIXTURE, tmp_path / "mine")
    (tmp_path / "mine" / "audit.jsonl").write_text(line + "\n{}\n")
    (problem,) = look(shell, code=1)["problems"]
    assert problem.startswith("mine: ")


def test_a_model_that_is_not_there_is_a_problem(shell: Shell) -> None:
    found = look(shell, "--model", "./nothing", code=1)
    assert found["model"] == {}
    assert "nothing" in found["problems"][0]
