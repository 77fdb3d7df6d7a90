"""Options declared once: groups of them are flattened into a command, in the order in which they stand."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Annotated

import typer
from typer.testing import CliRunner

from skipstone.cli.grouping import LAST, grouped


@dataclass(frozen=True)
class Size:
    height: Annotated[int, typer.Option(help="In pixels.")] = 8
    names: Annotated[list[str] | None, typer.Option("--name", help="Repeat it.")] = None
    quiet: Annotated[bool, typer.Option("--quiet")] = field(default=False, metadata=LAST)


@dataclass(frozen=True)
class Place:
    where: Annotated[str, typer.Option(help="A folder.")]
    depth: Annotated[int, typer.Option()] = field(default=1, metadata=LAST)


@grouped
def draw(text: Annotated[str, typer.Argument()] = "", *, size: Size, place: Place, seed: int = 0) -> None:
    """Draw."""
    typer.echo(f"{text} {size} {place} {seed}")


def test_fields_stand_where_their_group_stands_and_the_last_ones_at_the_end() -> None:
    assert list(inspect.signature(draw).parameters) == ["text", "height", "names", "where", "seed", "quiet", "depth"]


def test_a_command_is_handed_its_groups() -> None:
    app = typer.Typer()
    app.command()(draw)
    run = CliRunner().invoke(app, ["a cat", "--height", "9", "--name", "a", "--name", "b", "--where", "x", "--quiet"])
    assert run.exit_code == 0, run.output
    assert run.output.strip() == f"a cat {Size(9, ['a', 'b'], True)} {Place('x')} 0"


def test_a_field_without_a_default_is_an_option_that_has_to_be_said() -> None:
    app = typer.Typer()
    app.command()(draw)
    assert CliRunner().invoke(app, ["a cat"]).exit_code == 2
