"""`skipstone prefer` as a shell sees it, with judges of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_judges import HttpReply, LocalJudge, always_left, folders, prefer_brighter
from outcome import Shell, list_files

SAMPLES = 7


@pytest.fixture
def light() -> Iterator[LocalJudge]:
    with LocalJudge(prefer_brighter) as server:
        yield server


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[str, ...]:
    """The command's sources and prompts: a dark row and a bright one."""
    both, prompts = folders(tmp_path, {"dark": 40, "bright": 200}, SAMPLES)
    return (*map(str, both), "--prompts", str(prompts), "--side", "64")


def test_a_verdict_from_one_command(shell: Shell, light: LocalJudge, pictures: tuple[str, ...], tmp_path: Path) -> None:
    with LocalJudge(always_left) as biased:
        judges = ("-j", f"light@{light.url}", "-j", f"left@{biased.url}")
        done = shell("prefer", *pictures, *judges)
        assert done.code == 0, done.err
        asked = 2 * 2 * SAMPLES
        assert (
            f"1 pairs of rows, 7 samples, 2 judges, both ways round: {asked} questions. {asked} are open." in done.err
        )
        assert "dark against bright: bright is preferred" in done.out
        assert "position bias" in done.out
        assert list_files(tmp_path / "preference") == [
            "answers.jsonl", "disagreements.png", "strengths.png", "verdict.json", "verdict.md",
        ]  # fmt: skip
        again = shell("prefer", *pictures, *judges)
        assert "0 are open" in again.err
        assert len(light.requests) == 2 * SAMPLES
        assert "dark against bright: bright is preferred" in again.out
        assert "28 answers in" in shell("prefer", *pictures, *judges, "--seed", "3", "--calls", "0").err


def test_a_cap_is_said_and_the_same_command_goes_on(shell: Shell, light: LocalJudge, pictures: tuple[str, ...]) -> None:
    command = ("prefer", *pictures, "-j", f"light@{light.url}", "--together", "1")
    done = shell(*command, "--calls", "6")
    assert done.code == 0
    assert len(light.requests) == 6
    assert "The cap is reached." in done.out
    assert "4 pairs are open: the same command goes on." in done.out
    assert json.loads(Path("preference/verdict.json").read_text())["capped"] is True
    assert "is preferred" in shell(*command, "--calls", "14").out
    assert len(light.requests) == 2 * SAMPLES


def test_a_dry_run_says_how_much_there_is_and_touches_nothing(
    shell: Shell, light: LocalJudge, pictures: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    done = shell("prefer", *pictures, "-j", f"m@{light.url}#NO_KEY", "--limit", "2", "--dry-run")
    assert done.code == 0
    assert "2 samples, 1 judges, both ways round: 4 questions. 4 are open." in done.err
    assert light.requests == []
    assert not Path("preference").exists()


def test_money_is_counted(shell: Shell, light: LocalJudge, pictures: tuple[str, ...]) -> None:
    prices = ("--price-in", "2", "--price-out", "5", "--tokens", "20")
    done = shell("prefer", *pictures, "-j", f"m@{light.url}", *prices, "--spend", "0.0135")
    assert "The cap is reached." in done.out
    found = json.loads(Path("preference/verdict.json").read_text())["spent"]
    assert found["money"] == pytest.approx(0.0021 * len(light.requests))
    assert 0.0135 - 0.0021 * 1.3 < found["money"] <= 0.0135


def test_a_judge_that_is_given_up_is_an_error_with_the_others_verdict(
    shell: Shell, light: LocalJudge, pictures: tuple[str, ...]
) -> None:
    with LocalJudge(lambda _: HttpReply(401, b'{"error": {"message": "who are you?"}}')) as closed:
        done = shell("prefer", *pictures, "-j", f"light@{light.url}", "-j", f"shut@{closed.url}")
    assert done.code == 2
    assert "dark against bright: bright is preferred" in done.out
    assert "HTTP 401: who are you? Name the variable that holds its key" in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("skipstone:")]) == 1


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        (("-j", "gpt"), "Expected a judge as MODEL@URL#VARIABLE"),
        (("-j", "m@http://127.0.0.1:9/v1#NO_KEY"), "needs its key in $NO_KEY, which is not set"),
        (("-j", "m@http://127.0.0.1:9/v1", "--tries", "1", "--timeout", "1"), "does not answer"),
        (("-j", "m@http://127.0.0.1:9/v1", "--row", "dim"), "No pictures of a row 'dim'"),
        (("-j", "m@http://127.0.0.1:9/v1", "--against", "dim"), "expected one of the rows"),
        (("-j", "m@http://127.0.0.1:9/v1", "--spend", "1"), "needs prices"),
        (("-j", "m@http://127.0.0.1:9/v1", "--price-in", "1", "--price-in", "2"), "once for each of 1 judges, got 2"),
        (("-j", "m@http://127.0.0.1:9/v1", "--layout", "three"), "layout out of joined, two"),
        (("-j", "m@http://127.0.0.1:9/v1", "--set", "temperature"), "--set NAME=VALUE"),
        (("-j", "m@http://127.0.0.1:9/v1", "--set", "temperature=NaN"), "expected finite numbers"),
    ],
)
def test_bad_input_is_one_sentence(
    shell: Shell, pictures: tuple[str, ...], changed: tuple[str, ...], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    done = shell("prefer", *pictures, *changed)
    assert done.code == 2
    assert wrong in done.err
    assert "Traceback" not in done.err


def test_folders_without_results_or_prompts(shell: Shell, pictures: tuple[str, ...]) -> None:
    judge = ("-j", "m@http://127.0.0.1:9/v1")
    assert "expected the --out of skipstone bench" in shell("prefer", pictures[0], *judge).err
    assert "need --prompts" in shell("prefer", *pictures[:2], *judge).err
    assert "cannot be read" in shell("prefer", *pictures[:2], "--prompts", "none.csv", *judge).err


def test_help_teaches(shell: Shell) -> None:
    done = shell("prefer", "--help")
    assert done.code == 0
    assert "both ways round" in done.out
