"""`skipstone demo` with a tiny pipeline in Pebble's place and a stand-in for its judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outcome import Shell

import skipstone_pebble as pebble
from skipstone.errors import PromptError
from skipstone_pebble import cli as demo
from skipstone_pebble import scenes
from skipstone_pebble.model import Pebble


def test_the_demo_says_where_the_sheet_is(
    shell: Shell, tiny_pebble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(pixels: object, prompt: str) -> float:
        if prompt == demo.PROMPTS[0]:
            raise PromptError("not a sentence of the grammar")
        return 0.25

    monkeypatch.setattr(pebble, "path", lambda name="pebble": tiny_pebble)
    monkeypatch.setattr(Pebble, "judge", property(lambda self: judge))
    monkeypatch.setattr(demo, "STEPS", 8)
    done = shell("demo", "--out", "shown")
    assert done.code == 0
    assert "shown/sheet.png" in done.out
    records = [json.loads(line) for line in (tmp_path / "shown" / "samples.jsonl").read_text().splitlines()]
    assert {r["prompt"] for r in records} == set(demo.PROMPTS)
    assert len(records) == len(demo.PROMPTS) * (1 + len(demo.POLICIES))
    judged = [r for r in records if "judge" in r]
    assert {r["prompt"] for r in judged} == set(demo.PROMPTS[1:])
    assert "| judge |" in (tmp_path / "shown" / "table.md").read_text()
    assert "0.25 |" in (tmp_path / "shown" / "table.md").read_text()
    assert shell("demo", "--out", "shown").code == 2


def test_its_prompts_are_sentences_that_pebble_was_made_for() -> None:
    assert all(scenes.parse_prompt(prompt) for prompt in demo.PROMPTS)
