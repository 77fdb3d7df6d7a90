"""The command line as a shell sees it, in this process: exit code, stdout, stderr."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from outcome import Outcome, Shell

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
