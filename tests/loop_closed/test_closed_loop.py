"""The closed loop on Pebble and a real MLflow server: drift, alarm, promotion, hot reload (make test-loop)."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if "SKIPSTONE_LOOP" not in os.environ:
    pytest.skip("takes minutes: make test-loop", allow_module_level=True)

import httpx
import psutil
import yaml
from track.loops import tiny_pebble, write_loop
from track.servers import mlflow_server

from skipstone.serving.fingerprint import weights_fingerprint
from skipstone_track.connection import connect
from skipstone_track.loop.loop import open_loop
from skipstone_track.loop.records import read_step
from skipstone_track.loop.settings import load_loop
from skipstone_track.registry import find

ROOT = Path(__file__).parents[2]
DEMO = runpy.run_path(str(ROOT / "examples" / "loop" / "demo.py"))
LOOP: dict[str, Any] = {
    "name": "pebble",
    "draw": {"prompts": "pebble-tuning", "limit": 30, "held_out": 6, "pictures": 0},
    "calibrate": {
        "qualities": {"low": "psnr >= 30 @ 70%"},
        "confidence": 0.8,
        "policies": ["stride(tol=0.3)", "stride(tol=0.01)"],
    },
    "deploy": {"options": ["--rows", "16", "--threads", "1"]},
    "audit": {"prompts": "pebble", "requests": 30, "minutes": 10},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with mlflow_server(tmp_path / "mlflow") as uri:
        yield uri


def write(folder: Path, **more: Any) -> Path:
    file = folder / "loop.yaml"
    file.write_text(yaml.safe_dump({**LOOP, "folder": str(folder / "loop"), **more}))
    return file


def test_a_drift_is_seen_by_the_audit_and_mended_while_the_server_draws(server: str, tmp_path: Path) -> None:
    settings = load_loop(write(tmp_path, track=server))
    answers: list[httpx.Response] = []
    stopped = threading.Event()
    with open_loop(settings, print) as loop:

        def ask() -> None:
            while not stopped.wait(3):  # audits are made while nothing else is drawn
                if (drawn := loop.server) is not None:
                    body = {"prompt": "a red apple on a blue background", "quality": "low", "seed": len(answers)}
                    answers.append(httpx.post(f"{drawn.address}/v1/images/generations", json=body, timeout=120))

        client = threading.Thread(target=ask)
        client.start()
        try:
            first = loop.run_round()
            DEMO["force_drift"](loop)
            second = loop.run_round()
        finally:
            stopped.set()
            client.join()
    assert (first.status, second.status) == ("done", "done")
    records = {entry.step: read_step(settings.place / entry.folder) for entry in second.steps}
    assert "the promise of low does not hold" in records["watch"].details["alarm"]
    assert records["audit"].details["alarm"] == ""
    assert {answer.status_code for answer in answers} == {200}
    facts = [answer.json()["data"][0] for answer in answers]
    fallen_back = [one for one in facts if one["certificate"] is None]
    assert fallen_back  # between the alarm and the new certificate the full run draws
    assert {one["calls"] for one in fallen_back} == {50}
    assert facts[-1]["certificate"] == "low"
    assert facts[-1]["fingerprint"] == second.weights == weights_fingerprint(settings.place / "pebble")
    champion = find("models:/pebble@champion", server)
    assert (champion.number, champion.tags["fingerprint.weights"]) == (2, second.weights)
    with connect(server) as client_of_mlflow:
        run = client_of_mlflow.get_run(second.run_id)
        nested = f"tags.`mlflow.parentRunId` = '{second.run_id}'"
        inside = client_of_mlflow.search_runs([run.info.experiment_id], nested)
    assert {one.data.tags["kind"] for one in inside} == {f"loop {entry.step}" for entry in second.steps}


def test_ctrl_c_ends_the_server_and_the_same_command_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    file = write_loop(tmp_path, tiny_pebble(tiny_model, tmp_path / "tiny"))
    command = [sys.executable, "-m", "skipstone", "loop", "run", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert any(line.startswith("deploy") for line in process.stdout)
    serving = [one for one in psutil.Process(process.pid).children() if "serve" in one.cmdline()]
    assert len(serving) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    psutil.wait_procs(serving, 30)
    assert not serving[0].is_running()
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("unchanged since round 1") == 4
