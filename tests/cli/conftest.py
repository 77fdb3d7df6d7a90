"""The command line as a shell sees it, in this process: exit code, stdout, stderr."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from outcome import Outcome, Shell

import skipstone_pebble as pebble
from skipstone import cli


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    """Run `skipstone ARGUMENTS...` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["skipstone", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), said.out, said.err)

    return run


@pytest.fixture(scope="session")
def tiny_pebble(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as a folder in Pebble's format: its manifest makes it run in the engine's loop."""
    folder = tmp_path_factory.mktemp("pebbles") / "tiny"
    shutil.copytree(tiny_model, folder)
    (folder / pebble.MANIFEST).write_text(json.dumps({"files": {}}))
    return folder
