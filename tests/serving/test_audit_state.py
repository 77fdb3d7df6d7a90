"""What audits have seen outlives the process, is shared by processes, and is never half written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from analytic import served

from skipstone.serving import Engine, PictureRequest
from skipstone.serving.audit_state import STATE_FILE, AuditStates
from skipstone.serving.audits import Auditor
from skipstone.serving.models import ServedModel, Source
from skipstone.serving.settings import make_setting

FULL = "fixed @ ddim / trailing / 30"
Make = Callable[..., ServedModel]


def model(
    folder: Path | None = None, fingerprint: str = "a", digest: str = "1", target: str = "psnr >= 60 @ 90%"
) -> Any:
    """A model with two certificates of which the fast one cannot hold."""
    found = served()
    choices = {}
    for name, steps in (("low", 2), ("high", 30)):
        setting = make_setting(found.choices.subject, f"fixed @ ddim / trailing / {steps}")
        choices[name] = replace(
            setting, certificate=name, target=target, calls=float(steps), reference=FULL, digest=digest
        )
    found.choices = replace(found.choices, certificates=choices)
    found.source = Source(folder, "", fingerprint)
    return found


def file_of(folder: Path, name: str = "low") -> Path:
    return folder / "certificates" / name / STATE_FILE


def audit(states: AuditStates, one: ServedModel, value: float = 10.0, name: str = "low") -> Any:
    return states.add(one, name, one.choices.certificates[name], value)


def test_evidence_is_gathered_over_restarts_and_a_withdrawn_certificate_stays_so(tmp_path: Path) -> None:
    alarms = []
    for _ in range(30):  # each a process of its own that audits one picture
        with Engine({"analytic": model(tmp_path)}, observer=(auditor := Auditor(1.0, AuditStates()))) as engine:
            auditor.withdraw_known(engine.models)
            picture = engine.submit_all([PictureRequest("ab", quality="low", seed=len(alarms))])[0].result()
            result = auditor.audit_next(engine)
        if picture.certificate != "low":
            break
        assert result is not None
        alarms.append(result.alarm)
    assert 1 < len(alarms) < 20
    assert alarms == [False] * (len(alarms) - 1) + [True]
    assert (picture.certificate, picture.calls) == ("high", 30)  # the next process knew


def test_it_is_written_beside_the_certificate_or_where_it_is_told(tmp_path: Path) -> None:
    audit(AuditStates(), model(tmp_path / "model"))
    assert file_of(tmp_path / "model").is_file()
    audit(AuditStates(folder=tmp_path / "states"), model(tmp_path / "model"))
    assert (tmp_path / "states" / "analytic" / "low" / STATE_FILE).is_file()
    assert audit(AuditStates(), model(None)).n == 1  # a model without a folder: in memory


@pytest.mark.parametrize("changed", [{"fingerprint": "b"}, {"digest": "2"}, {"target": "psnr >= 61 @ 90%"}])
def test_another_certificate_or_other_weights_begin_anew(tmp_path: Path, changed: dict[str, str]) -> None:
    states = AuditStates()
    assert [audit(states, model(tmp_path)).n for _ in range(3)] == [1, 2, 3]
    assert audit(states, model(tmp_path, **changed)).n == 1
    assert audit(states, model(tmp_path, **changed)).n == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 1000,
        lambda text: json.dumps({**json.loads(text), "logs": ["nan"] * 20}),
        lambda text: json.dumps({**json.loads(text), "logs": [0.0]}),
        lambda text: json.dumps({**json.loads(text), "peak": -1.0}),
        lambda text: json.dumps({**json.loads(text), "logs": ["x"] * 20}),
        lambda text: json.dumps({**json.loads(text), "format": 2}),
        lambda text: " " * 1_000_000,
    ],
)
def test_a_damaged_file_is_said_and_begun_anew(
    tmp_path: Path, damage: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    audit(AuditStates(), model(tmp_path))
    file = file_of(tmp_path)
    file.write_text(damage(file.read_text()))
    assert audit(AuditStates(), model(tmp_path)).n == 1
    assert "begins anew" in caplog.text
    assert audit(AuditStates(), model(tmp_path)).n == 2


def test_who_stakes_everything_and_loses_is_written_too(tmp_path: Path) -> None:
    found = audit(AuditStates(), model(tmp_path, target="psnr >= 5 @ mean within 0..100"), 100.0)
    assert -math.inf in found.logs
    again = AuditStates().read(one := model(tmp_path, target="psnr >= 5 @ mean within 0..100"), "low",
                               one.choices.certificates["low"])  # fmt: skip
    assert again == found


def test_a_folder_that_cannot_be_written_is_said_once_and_memory_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "certificates").write_text("a file where a folder belongs")
    states = AuditStates()
    assert [audit(states, model(tmp_path)).n for _ in range(3)] == [1, 2, 3]
    assert caplog.text.count("are forgotten when the process ends") == 1


def audit_some(folder: str) -> int:
    states, one = AuditStates(), model(Path(folder))
    return max(audit(states, one, 99.0).n for _ in range(25))


def test_processes_that_share_a_folder_lose_nothing(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, get_context("fork")) as pool:
        counts = list(pool.map(audit_some, [str(tmp_path)] * 3))
    assert max(counts) == 75
    one = model(tmp_path)
    assert AuditStates().read(one, "low", one.choices.certificates["low"]).n == 75
    assert [path.name for path in file_of(tmp_path).parent.iterdir() if path.suffix == ".part"] == []
