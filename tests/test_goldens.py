"""Decisions do not change by accident. Regenerate with `python tests/goldens/make_decisions.py`."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

GOLDENS = Path(__file__).parent / "goldens"


def test_every_policy_decides_as_recorded() -> None:
    now = runpy.run_path(str(GOLDENS / "make_decisions.py"))["decisions"]()
    assert now == json.loads((GOLDENS / "decisions.json").read_text(encoding="utf-8"))
