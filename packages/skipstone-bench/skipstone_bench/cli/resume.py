"""The options of a run that goes on: those of its first start, from the folder's header, unless they are given again.

The folder may be somebody else's: its values are held against the types of the options, and no code that it names runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    import typer

PLACES = ("out", "resume")  # always those of the command line: the folder may have been moved
NOT_STORED = ("context", "track")


def resolve_options(context: typer.Context, command: Callable[..., Any], out: Path, resume: bool) -> dict[str, Any]:
    """The values of all options by name, as JSON has them.

    Args:
        context: Of the command.
        command: The function that Typer calls; its annotations are the types of the options.
        out: The folder.
        resume: Whether options that are not given are those of the folder.

    Raises:
        BenchError: the folder holds no results, a value in it that the option does not take, or the name of a Python
            file, which would be run.
    """
    values = {name: _to_plain(value) for name, value in context.params.items() if name not in NOT_STORED}
    if not resume:
        return values
    from ..store import HEADER, Store

    sources = {name: context.get_parameter_source(name) for name in values}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    saved = Store.load(out).header.options
    names = [name for name in values if name in saved and name not in given and name not in PLACES]
    restored = _convert({name: saved[name] for name in names}, command, f"{out / HEADER}: options")
    _refuse_code(restored, out, context)
    return {**values, **restored}


def spell_policies(values: Mapping[str, Any]) -> list[str]:
    """What has to be typed beside --resume: -p SPEC of every policy where one of them is from a Python file.

    All other options refuse Python files.
    """
    from skipstone.policies.from_file import is_file_spec

    specs = values.get("policies") or ()
    named = any(is_file_spec(spec.partition("@")[0].strip()) for spec in specs)
    return [word for spec in specs for word in ("-p", spec)] if named else []


def _to_plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, list | tuple) else value


def _convert(saved: Mapping[str, Any], command: Callable[..., Any], where: str) -> dict[str, Any]:
    """Values of a header as the options have them. Raises BenchError."""
    from skipstone.errors import BenchError
    from skipstone.json_files import JsonReader, join

    reader = JsonReader(BenchError, "The folder is damaged or of another version: choose another --out.")
    kinds, declared = get_type_hints(command), get_type_hints(command, include_extras=True)
    found = {}
    for name, value in saved.items():
        kind = str | None if kinds[name] in (Path, Path | None) else kinds[name]
        found[name] = _to_plain(reader.convert(kind, value, join(where, name)))
        for limit in getattr(declared[name], "__metadata__", ()):
            if getattr(limit, "min", None) is not None and isinstance(value, int | float) and not value >= limit.min:
                raise reader.fault(f"{join(where, name)}: expected at least {limit.min}, got {value}.")
    return found


def _refuse_code(restored: Mapping[str, Any], out: Path, context: typer.Context) -> None:
    """Raise BenchError where the folder, not the user, names a Python file that the run would execute."""
    from skipstone.errors import BenchError

    if words := spell_policies(restored):
        command = shlex.join([*context.command_path.split(), "--out", str(out), "--resume", *words])
        raise BenchError(
            f"{out} names a policy of a Python file, and going on runs that file, whoever wrote it. If you trust it, "
            f"name it yourself: {_listed(command)}"
        )


def _listed(command: str) -> str:
    return command if len(command) <= 1000 else f"{command[:1000]}..."
