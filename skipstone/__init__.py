"""Skipstone makes pretrained diffusion models faster by adapting each run to its prompt.

    with skipstone.adapt(pipe, "error_control") as adapted:
        image = pipe("a red apple on a blue table").images[0]
    print(adapted.last.summary())

Importing it loads no array library; names are found on first use. `__init__.pyi` has their types.
"""

import importlib
from typing import Any

from .deprecation import install_moved_modules as _install_moved_modules
from .errors import SkipstoneError as SkipstoneError
from .registry import names as names
from .registry import parse as parse
from .registry import register as register
from .registry import spell as spell

__version__ = "0.2.0.dev0"

_HOME = {
    "Adapted": "integrations.diffusers.guest",
    "Attempt": "engine.contracts",
    "AuditOptions": "calibration.audit",
    "Backbone": "engine.requests",
    "Cached": "engine.contracts",
    "CalibrationOptions": "calibration.procedure",
    "Certified": "policies.certified",
    "Estimate": "engine.requests",
    "Draft": "engine.contracts",
    "Finish": "engine.contracts",
    "Forecast": "engine.contracts",
    "Full": "engine.contracts",
    "Plan": "engine.contracts",
    "Policy": "engine.contracts",
    "Problem": "engine.requests",
    "Query": "engine.requests",
    "Refine": "engine.contracts",
    "Result": "engine.requests",
    "Run": "engine.contracts",
    "Scheduler": "integrations.diffusers.scheduler",
    "Solver": "engine.requests",
    "adapt": "integrations.diffusers.guest",
    "audit": "calibration.audit",
    "calibrate": "calibration.calibrate",
    "cite": "engine.trace",
    "denoise": "engine.drivers",
    "denoise_many": "engine.drivers",
    "explain": "engine.trace",
    "greedy_path": "engine.greedy",
    "load_policy": "integrations.identity",
    "push_to_hub": "policies.hub",
    "replay": "engine.drivers",
    "save_policy": "policies.storage",
}
_MODULES = {"mlx"}  # public modules, imported on first use
__all__ = ["SkipstoneError", "names", "parse", "policy", "register", "solver", "spell", *_MODULES, *_HOME]


_install_moved_modules()


def policy(spec: str) -> Any:
    """The policy of a spec string: `policy("third_order(tol=0.02) | budget(calls=20)")`. Raises SpecError."""
    return parse("policy", spec)


def solver(spec: str) -> Any:
    """The solver of a spec string: `solver("dpmpp(order=2)")`. Raises SpecError."""
    return parse("solver", spec)


def __getattr__(name: str) -> Any:
    """A public name, imported on first use; those of other packages by entry points of the group `skipstone.names`."""
    if name in _HOME:
        found = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = found
        return found
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    from .satellites import load_public_name

    return load_public_name(name)


def __dir__() -> list[str]:
    from .satellites import list_entry_points

    return sorted({*__all__, *(point.name for point in list_entry_points("names")), "__version__"})
