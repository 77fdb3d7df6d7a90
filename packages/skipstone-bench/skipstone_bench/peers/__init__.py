"""Other people's accelerators, run as themselves in the same bench.

A peer is a class with `@register("peer")` in a module of this folder: importing the package imports all of them.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
