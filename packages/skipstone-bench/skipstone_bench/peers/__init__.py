"""Other people's accelerators, run as themselves in the same bench.

A peer is a class with `@register("peer")` in a module of this folder: importing the package imports all of them.
"""

from importlib import import_module
from pkgutil import iter_modules


def import_peers() -> None:
    """Import every module of this folder."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


import_peers()
