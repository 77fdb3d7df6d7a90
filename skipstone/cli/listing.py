"""`skipstone list`: what there is to choose from, and what one of these things takes."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Annotated

import typer

KINDS = {
    "policies": "policy",
    "solvers": "solver",
    "grids": "grid",
    "schedules": "schedule",
    "metrics": "metric",
    "peers": "peer",
}
NO_PEERS = "none: they come with skipstone-bench: pip install 'skipstone[bench]'"


def _complete(incomplete: str) -> list[str]:
    """Kinds and names that begin so, for the shell."""
    from .. import registry

    known = [
        *KINDS,
        *(name for kind in KINDS.values() for name in (*registry.names(kind), *registry.list_presets(kind))),
    ]
    return [name for name in dict.fromkeys(known) if name.startswith(incomplete)]


def listing(
    name: Annotated[
        str | None,
        typer.Argument(
            help="policies, solvers, grids, schedules, metrics or peers; or the name of one thing. All by default.",
            metavar="[KIND|NAME]",
            autocompletion=_complete,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Name the policies, solvers, grids, schedules, metrics and peers there are.

    With the name of one of them: what it does, its settings with their
    defaults and ranges, and where it comes from.

    [bold]Examples[/bold]

      skipstone list
      skipstone list policies
      skipstone list stride
    """
    lines = _list_kinds([name] if name else list(KINDS)) if name is None or name in KINDS else _describe_name(name)
    for line in lines:
        typer.echo(line)


def _list_kinds(titles: list[str]) -> Iterator[str]:
    """A line for each thing of these kinds, below a title where there are several kinds."""
    from .. import registry
    from ..evaluation.columns import SPEC_SETS

    for title in titles:
        kind = KINDS[title]
        names, presets = registry.names(kind), registry.list_presets(kind)
        if len(titles) > 1:
            yield f"{title}:"
        if not names:
            yield f"  {NO_PEERS}"
        width = max(map(len, (*names, *presets)), default=0)
        for name in names:
            yield f"  {name:{width}}  {registry.first_doc_line(registry.find_class(kind, name))}"
        for name, (spec, about) in presets.items():
            yield f"  {name:{width}}  {about} Short for {spec}."
        for name, (about, specs) in SPEC_SETS.items() if title == "peers" else ():
            yield f"  {name:{width}}  {about} As -p: {len(specs)} rows."


def _describe_name(name: str) -> Iterator[str]:
    """All things of that name, in full. Raises UnknownNameError where there is none."""
    from .. import registry
    from ..errors import UnknownNameError
    from ..evaluation.columns import SPEC_SETS

    if name in registry.FACTORIES["policy"]:
        made = getattr(importlib.import_module(registry.FACTORIES["policy"][name]), name)
        yield from (f"{name} (policy)", *(f"  {line}".rstrip() for line in inspect.cleandoc(made.__doc__).splitlines()))
        return
    found = [kind for kind in KINDS.values() if name in (*registry.names(kind), *registry.list_presets(kind))]
    if not found and name not in SPEC_SETS:
        known = tuple(_complete(""))
        raise UnknownNameError(
            f"Nothing is called {name[:200]!r}.{registry.suggest_spelling(name, known)} Expected a name out of: "
            f"skipstone list."
        )
    if name in SPEC_SETS:
        yield from (f"{name} (rows of skipstone bench and compare)", f"  {SPEC_SETS[name][0]}", "")
        yield from (f"  {spec}" for spec in SPEC_SETS[name][1])
    for kind in found:
        if name in registry.list_presets(kind):
            spec, about = registry.list_presets(kind)[name]
            yield from (f"{name} (preset of {kind}, stands for {spec})", f"  {about}", "")
            yield from _describe(kind, re.split(r"\W", spec)[0])
        else:
            yield from _describe(kind, name)


def _describe(kind: str, name: str) -> Iterator[str]:
    """One registered class: its line, its settings, its source."""
    from .. import registry
    from ..settings import describe_setting

    cls = registry.find_class(kind, name)
    about = _sections(cls)
    yield from (f"{name} ({kind})", f"  {registry.first_doc_line(cls)}", "")
    settings = [f for f in fields(cls) if f.init]
    for setting in settings:
        default = "no default" if setting.default is MISSING else f"default {setting.default!r}"
        yield f"  {setting.name}: {describe_setting(cls, setting.name)}, {default}"
        yield from (f"      {line}" for line in about.get(setting.name, ()))
    if not settings:
        yield "  It has no settings."
    yield ""
    yield from (f"  {line}" for line in about.get("References", ()))
    yield f"  Code: {cls.__module__}.{cls.__qualname__}"


def _sections(cls: type) -> dict[str, list[str]]:
    """Argument -> the lines that a docstring has about it; "References" -> those of its sources."""
    found: dict[str, list[str]] = {}
    section, lines = "", list[str]()  # of the entry that is being read
    for line in inspect.cleandoc(cls.__doc__ or "").splitlines():
        if line.startswith("References:"):
            section = "References"
            lines = found[section] = [f"Source: {line.removeprefix('References:').strip()}"]
        elif line in ("Args:", ""):
            section = line
        elif section == "Args:" and (entry := re.match(r"    (\w[\w, ]*): (.*)", line)):
            lines = [entry[2]]
            found |= dict.fromkeys(entry[1].split(", "), lines)
        elif section:
            lines.append(line.strip())
    return found
