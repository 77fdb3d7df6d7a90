"""`skipstone serve` as a process: it starts, answers the example, and finishes what it accepted when told to stop."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from skipstone import cli

ROOT = Path(__file__).parent.parent.parent
Started = tuple[subprocess.Popen[str], str]


@pytest.fixture(scope="module")
def started() -> Iterator[Started]:
    command = [sys.executable, "-m", "skipstone", "serve", "--port", "0", "--rows", "16", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"})
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://\S+", line):
            yield process, found[0]
            break
    process.kill()
    process.wait()


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """What `skipstone serve ARGUMENTS...` says on stderr, with exit code 2."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["skipstone", "serve", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        return capsys.readouterr().err

    return run


def test_the_example_gets_its_picture(started: Started, tmp_path: Path) -> None:
    example = ROOT / "examples" / "openai_client.py"
    done = subprocess.run([sys.executable, example, started[1]], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "certificate medium: at least 90 % of prompts have psnr >= 35" in done.stdout
    assert (tmp_path / "served.png").read_bytes().startswith(b"\x89PNG")


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused("--port", str(taken.getsockname()[1]), "--model", "nowhere/at/all")
    assert "Cannot listen on 127.0.0.1" in said
    assert "--port 0" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--host", "0.0.0.0"), "--api-keys"),
        (("--model", "a=pebble", "--model", "a=pebble-dit"), "each name once"),
        (("--port", "0", "--model", "nowhere"), "nowhere"),
        (("--port", "0", "--policy", "ballanced", "--model", "nowhere"), "balanced"),
        (("--port", "0", "--api-keys", "nowhere.txt"), "nowhere.txt"),
        (("--port", "0", "--admin-keys", "nowhere.txt"), "nowhere.txt"),
        (("--port", "0", "--student", "a=x", "--student", "a=y"), "--student: expected"),
        (("--port", "0", "--student", "mine=nowhere"), "skipstone distill"),
        (("--replicas", "2"), "add --ray"),
        (("--max-replicas", "2"), "add --ray"),
    ],
)
def test_what_cannot_be_served_is_said(words: tuple[str, ...], said: str, refused: Refused) -> None:
    assert said in refused(*words)


def test_sigterm_finishes_what_was_accepted(started: Started) -> None:
    """The last test of the module: it ends the server."""
    process, address = started
    body = {"prompt": "a frog", "n": 4, "policy": "fixed @ ddim / trailing / 60"}
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(httpx.post, f"{address}/v1/images/generations", json=body, timeout=120)
        while "skipstone_running_pictures 4.0" not in httpx.get(f"{address}/metrics").text:
            assert not asked.done(), asked.result().text
        process.send_signal(signal.SIGTERM)
        answer = asked.result()
    assert answer.status_code == 200
    assert [item["calls"] for item in answer.json()["data"]] == [60] * 4
    assert process.wait(60) in (0, -signal.SIGTERM)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/healthz")
