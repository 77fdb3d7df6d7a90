"""Write docs/reference.md from the registry and the docstrings: `make docs`."""

from __future__ import annotations

import inspect
from pathlib import Path

from skipstone import registry

PAGE = Path(__file__).with_name("reference.md")
HEADINGS = {
    "policy": "Policies",
    "solver": "Solvers",
    "grid": "Grids",
    "schedule": "Schedules",
    "signal": "Signals",
    "metric": "Metrics",
    "peer": "Peers",
}


def entry(kind: str, name: str) -> str:
    """One class: its name, the defaults of its settings, its docstring."""
    cls = registry.find_class(kind, name)
    arguments = ", ".join(str(p) for p in _settings(cls))
    doc = inspect.cleandoc(cls.__doc__ or "")
    return f"### `{name}({arguments})`\n\n```text\n{doc}\n```\n"


def short(kind: str) -> str:
    """The presets of a kind."""
    rows = [f"| `{name}` | `{spec}` | {about} |" for name, (spec, about) in registry.list_presets(kind).items()]
    return "\n".join(["### Presets\n", "| Name | Stands for | |", "|---|---|---|", *rows]) + "\n"


def _settings(cls: type) -> list[str]:
    shown = []
    for p in inspect.signature(cls).parameters.values():
        shown.append(p.name if p.default is p.empty else f"{p.name}={p.default!r}")
    return shown


def page() -> str:
    """The whole reference page."""
    parts = [
        "# Reference\n",
        "Generated from the docstrings by `make docs`; the same texts stand in `skipstone list` and `help()`.\n",
    ]
    for kind, heading in HEADINGS.items():
        parts.append(f"## {heading}\n")
        parts += [entry(kind, name) for name in registry.names(kind)]
        parts += [short(kind)] if registry.list_presets(kind) else []
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
