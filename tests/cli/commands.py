"""All commands of `skipstone`, those of packages too, and their options."""

from __future__ import annotations

from typing import Any

import typer.main

from skipstone import cli


def all_commands(group: Any = None, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """The commands by their names, as Typer calls them."""
    found: dict[str, Any] = {}
    for name, command in (group or typer.main.get_command(cli.app)).commands.items():
        if hasattr(command, "commands"):
            found |= all_commands(command, (*words, name))
        else:
            found[" ".join((*words, name))] = command
    return found


def all_options() -> dict[str, set[str]]:
    """The names of every command's options and arguments."""
    return {name: {parameter.name for parameter in command.params} for name, command in all_commands().items()}
