"""`skipstone serve --ray` as a process: it starts a Ray of its own, and ends when what it accepted is finished."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import threading

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not in this environment: make test-ray")


def test_the_command_serves_on_ray_and_finishes_what_it_accepted() -> None:
    words = ["--ray", "--port", "0", "--rows", "8", "--threads", "1", "--audit", "0"]
    command = [sys.executable, "-m", "skipstone", "serve", *words]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"COLUMNS": "200", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    assert process.stderr is not None
    try:
        address = next(
            found[1] for line in process.stderr if (found := re.search(r"Serving pebble at (http://\S+)", line))
        )
        threading.Thread(target=process.stderr.read, daemon=True).start()
        body = {"prompt": "a frog", "policy": "fixed @ ddim / trailing / 60", "stream": True, "partial_images": 10}
        events = []
        with httpx.stream("POST", f"{address}/v1/images/generations", json=body, timeout=240) as answer:
            for line in answer.iter_lines():
                events += [line] if line.startswith("event: ") else []
                if len(events) == 1 and line.startswith("event: "):  # it is drawn now
                    process.send_signal(signal.SIGTERM)
        assert events == ["event: image_generation.partial_image"] * 10 + ["event: image_generation.completed"]
        assert process.wait(120) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
