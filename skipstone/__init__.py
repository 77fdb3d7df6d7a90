"""Skipstone makes pretrained diffusion models faster by adapting each run to its prompt.

    import skipstone

    pebble = skipstone.Pebble.load()
    problem = pebble.problem("a red apple on a blue background", seed=0)
    result = skipstone.denoise(pebble.backbone, problem, skipstone.solver("ddim"), skipstone.policy("third_order"))
    print(skipstone.explain(result.run))

Importing it loads no array library; names are found on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import SkipstoneError as SkipstoneError
from .registry import names as names
from .registry import parse as parse
from .registry import register as register
from .registry import spell as spell

if TYPE_CHECKING:
    from .calibrate.run import calibrate as calibrate
    from .engine.contracts import Policy as Policy
    from .engine.requests import Solver as Solver

__version__ = "0.1.0"

_HOME = {
    "Attempt": "engine.contracts",
    "Backbone": "engine.requests",
    "Cached": "engine.contracts",
    "Estimate": "engine.requests",
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
    "Solver": "engine.requests",
    "denoise": "engine.drivers",
    "denoise_many": "engine.drivers",
    "replay": "engine.drivers",
    "explain": "engine.trace",
    "cite": "engine.trace",
    "greedy_path": "engine.greedy",
    "Pebble": "pebble.model",
    "Adapted": "backbones.diffusers.guest",
    "adapt": "backbones.diffusers.guest",
    "audit": "calibrate.audit",
    "Certified": "policies.certified",
    "load_policy": "backbones.identity",
    "save_policy": "policies.saved",
}
__all__ = ["SkipstoneError", "calibrate", "names", "parse", "policy", "register", "solver", "spell", *_HOME]


def policy(spec: str) -> Policy:
    """The policy of a spec string: `policy("third_order(tol=0.02) | budget(calls=20)")`."""
    return parse("policy", spec)  # type: ignore[no-any-return]


def solver(spec: str) -> Solver:
    """The solver of a spec string: `solver("dpmpp(order=2)")`."""
    return parse("solver", spec)  # type: ignore[no-any-return]


def __getattr__(name: str) -> Any:
    if name == "calibrate":  # the package, which can be called
        return importlib.import_module(".calibrate", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
