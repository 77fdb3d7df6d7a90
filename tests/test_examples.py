"""The examples run as users run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
ELSEWHERE = {"openai_client.py"}  # needs a server: tests/serving/test_serve_command.py


def _run(folder: Path, name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in here for path in EXAMPLES.glob("*.py") if path.name not in ELSEWHERE)


@pytest.mark.parametrize(("name", "said"), [("pebble.py", "calls"), ("own_policy.py", "26 of 50 calls")])
def test_examples_on_the_embedded_model(tmp_path: Path, name: str, said: str) -> None:
    assert said in _run(tmp_path, name)


def test_adapting_a_pipeline(tmp_path: Path, tiny_model: Path) -> None:
    assert "calls" in _run(tmp_path, "adapt_pipeline.py", str(tiny_model))
    assert len(list(tmp_path.glob("adapted-*.png"))) == 2
