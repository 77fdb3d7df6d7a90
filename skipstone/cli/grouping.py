"""Options that several commands share: fields of a dataclass, declared once, that a command takes as one argument."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

LAST = {"last": True}  # metadata of a field whose option comes after all arguments of the command


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command for Typer in which every argument that is a dataclass has become its fields.

        @dataclass(frozen=True)
        class SamplerOptions:
            steps: Annotated[int | None, typer.Option(help="Of the grid.")] = None

        @grouped
        def generate(prompt: Annotated[str, typer.Argument()], sampler: SamplerOptions) -> None: ...

    An option of a field comes where the dataclass stands among the arguments; that of a field with
    `field(metadata=LAST)` after all of them. Fields of different groups must have different names.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {}
    flat: list[inspect.Parameter] = []
    last: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hint := hints[name]) and isinstance(hint, type):
            groups[name] = hint
            flat += _parameters(hint, last=False)
            last += _parameters(hint, last=True)
        else:
            flat.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))
    flat += last

    @functools.wraps(command)
    def flattened(**given: Any) -> Any:
        made = {name: group(**{f.name: given.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        return command(**given, **made)

    setattr(flattened, "__signature__", inspect.Signature(flat))  # noqa: B010  (where `inspect` and Typer look)
    flattened.__annotations__ = {p.name: p.annotation for p in flat}
    return flattened


def _parameters(group: type, last: bool) -> list[inspect.Parameter]:
    """The fields of a group as parameters: those that come last, or the others."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=_default(f), annotation=hints[f.name])
        for f in fields(group)
        if f.metadata.get("last", False) == last
    ]


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else inspect.Parameter.empty
