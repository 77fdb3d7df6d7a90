"""What of a pipeline and its networks is not as it was declared, and may therefore tie the rows of a batch together."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Modules, attention processors and hooks of these packages treat each row of a batch by itself.
MODULE_PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "skipstone", "skipstone_pebble")
HOOK_PACKAGES = ("torch", "accelerate", "peft", "diffusers", "skipstone", "skipstone_bench")
PROCESSOR_PACKAGE = "diffusers.models"  # those beside pipelines are made for them: frames that attend to the first one
COUPLING_PROCESSORS = ("PAG",)  # in names of processors that read guidance branches off the batch
WRAPPERS = ("_hf_hook", "_diffusers_hook")  # what accelerate and diffusers leave where they have replaced `forward`


@dataclass(frozen=True)
class Undeclared:
    """What is not as declared.

    Args:
        parts: In words: processors, classes and hooks. They are stateless, so that a call may be repeated.
        replaced: Modules whose `forward` somebody has replaced, with what may keep state from call to call.
    """

    parts: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


def find_undeclared(models: Sequence[Any]) -> Undeclared:
    """Look through all modules of these networks."""
    parts: dict[str, None] = {}
    replaced: dict[str, None] = {}
    kinds: dict[type, None] = {}
    for model in models:
        for module in getattr(model, "_orig_mod", model).modules():  # of a compiled network, the network itself
            kind = _original_type(module)
            kinds[kind] = None
            parts.update(dict.fromkeys(_list_additions(module, kind)))
            if "forward" in vars(module) and not any(hasattr(module, name) for name in WRAPPERS):
                replaced[f"the forward of a {kind.__name__}"] = None
    for kind in kinds:
        if not _is_of(kind.__module__, MODULE_PACKAGES):
            parts[f"{kind.__name__} of {kind.__module__}"] = None
        if _is_forward_replaced(kind):
            replaced[f"the forward of {kind.__name__}"] = None
    return Undeclared(tuple(parts), tuple(replaced))


def _list_additions(module: Any, kind: type) -> Iterator[str]:
    """What has been put into one module: an attention processor, hooks."""
    if (processor := getattr(module, "processor", None)) is not None and not _is_known_processor(type(processor)):
        yield f"the attention processor {type(processor).__name__}"
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if not _is_of(_module_of(hook), HOOK_PACKAGES):
            yield f"a forward hook of {kind.__name__} ({_module_of(hook)})"


def _is_known_processor(kind: type) -> bool:
    reads_branches = any(word in kind.__name__ for word in COUPLING_PROCESSORS)
    return _is_of(kind.__module__, (PROCESSOR_PACKAGE,)) and not reads_branches


def _is_forward_replaced(kind: type) -> bool:
    """Whether the `forward` of a class was written in another package than the class."""
    owner = next((k for k in kind.__mro__ if "forward" in vars(k)), None)
    if owner is None:
        return False
    package = _module_of(inspect.unwrap(vars(owner)["forward"])).partition(".")[0]
    return package not in (owner.__module__.partition(".")[0], "torch")


def _original_type(module: Any) -> type:
    """The class, without the one that this package puts before it during a call."""
    kind: type = vars(type(module)).get("_skipstone_original", type(module))
    return kind


def _module_of(function: Callable[..., Any]) -> str:
    """Name of the module in which a hook, a bound method or a partial was written."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _is_of(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
