"""Help on a terminal of 80 columns: its examples can be pasted, and every option in them exists."""

from __future__ import annotations

import contextlib
import inspect
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from commands import all_commands
from outcome import Shell

from skipstone import cli

INDENT = "  skipstone "


def callbacks() -> dict[str, Any]:
    """Every command, the groups too, by its words."""
    root = typer.main.get_command(cli.app)
    return {"": root, "train": root.commands["train"], **all_commands()}  # type: ignore[attr-defined]


def lines_of_examples(command: Any) -> list[str]:
    """The lines of a help text that stand indented below "Examples" or "Start here"."""
    text = inspect.cleandoc(command.help or "").replace("\b", "")
    return [line for line in text.splitlines() if line.startswith("  ")]


def examples() -> Iterator[str]:
    """Every command of every help text, on one line."""
    for command in callbacks().values():
        yield from "\n".join(lines_of_examples(command)).replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("words", callbacks())
def test_examples_are_not_broken_at_80_columns(words: str, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = shell(*words.split(), "-h")
    assert done.code == 0
    shown = [line.strip() for line in done.out.splitlines()]
    for line in lines_of_examples(callbacks()[words]):
        assert line.strip() in shown


@pytest.mark.parametrize("line", dict.fromkeys(examples()))
def test_examples_are_commands_that_exist(line: str) -> None:
    words = shlex.split(line.partition(" | jq")[0])
    assert words.pop(0) == "skipstone"
    command = callbacks()[""]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    with contextlib.ExitStack() as stack:
        context = command.make_context("skipstone", words)  # exits with an error for an option that does not exist
        stack.enter_context(context)


@pytest.mark.parametrize("words", ["", "generate", "compare", "calibrate", "bench", "train", "train agent", "list"])
def test_the_short_option_is_help_too(words: str, shell: Shell) -> None:
    assert shell(*words.split(), "-h").out == shell(*words.split(), "--help").out


@pytest.mark.parametrize("name", ["generate", "compare", "estimate", "calibrate", "bench"])
def test_policies_are_chosen_by_the_same_option(name: str) -> None:
    names = [option.opts for option in all_commands()[name].params if "-p" in option.opts]
    assert names == [["--policy", "-p"]]


def test_the_shell_completes_commands_kinds_and_policies(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"skipstone comp": "compare", "skipstone list sol": "solvers", "skipstone generate x -p bal": "balanced"}
    monkeypatch.setenv("_SKIPSTONE_COMPLETE", "complete_bash")
    for words, found in asked.items():
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert shell().out.split() == [found]


def test_mps_is_a_device_and_gpu_is_none(shell: Shell, tiny_model: Path) -> None:
    import torch

    known = shell("generate", "a cat", "--model", str(tiny_model), "--steps", "2", "--device", "mps")
    assert known.code == 0 if torch.backends.mps.is_available() else "cannot be loaded on mps" in known.err
    unknown = shell("generate", "a cat", "--model", str(tiny_model), "--device", "gpu")
    assert unknown.code == 2
    assert "expected cuda, mps or cpu" in " ".join(unknown.err.replace("│", " ").split())
