"""Entry points of optional packages, and install hints for missing ones.

The library never imports them: it finds what they provide by entry points of the groups `skipstone` (modules that
register policies, solvers, metrics ...), `skipstone.names` (public names), `skipstone.models`, `skipstone.peers`,
`skipstone.commands`, `skipstone.trackers` and `skipstone.searches` (of `tune --search`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import MissingPackage

RESEARCH = "is part of the research folder: pip install ./research in a checkout of Skipstone"
# Kind -> name -> the extra that brings it.
EXTRAS = {
    "name": {"Pebble": "pebble", "distill": "train"},
    "model": {"pebble": "pebble", "pebble-dit": "pebble"},
    "prompt set": {"pebble": "pebble", "pebble-tuning": "pebble", "pebble-training": "pebble"},
    "command": {
        "demo": "pebble",
        "bench": "bench",
        "report": "bench",
        "prefer": "bench",
        "train": "train",
        "distill": "train",
        "search": "train",
        "runs": "track",
        "loop": "loop",
    },
    "tracker": {"mlflow": "track"},
    "search": {"tpe": "train", "nsga2": "train", "ppo": "train"},
}
PACKAGES = {"loop": "track"}  # extra -> package, where its name is another


def list_entry_points(group: str) -> Iterable[EntryPoint]:
    """The entry points of `skipstone.<group>`, sorted by name."""
    return sorted(entry_points(group=f"skipstone.{group}"), key=lambda point: point.name)


def install_hint(kind: str, name: str) -> str:
    """'comes with the package skipstone-pebble: pip install ...', or nothing where no package is known to bring it."""
    if kind == "command" and name == "evaluate":
        return RESEARCH
    extra = EXTRAS[kind].get(name)
    return (
        f"comes with the package skipstone-{PACKAGES.get(extra, extra)}: pip install 'skipstone[{extra}]'"
        if extra
        else ""
    )


def load_public_name(name: str) -> Any:
    """`skipstone.<name>` of another package.

    Raises:
        MissingPackage: a package that is not installed brings it.
        AttributeError: no package provides the name.
    """
    for point in list_entry_points("names"):
        if point.name == name:
            return point.load()
    if hint := install_hint("name", name):
        raise MissingPackage(f"skipstone.{name} {hint}.")
    raise AttributeError(f"module 'skipstone' has no attribute {name!r}")


def require_module(module: str, extra: str) -> None:
    """Raise MissingPackage where a library that an extra of ours brings is not installed.

    Args:
        module: What Python calls it.
        extra: Of `skipstone`.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingPackage(f"{module} is not installed: pip install 'skipstone[{extra}]'.")
