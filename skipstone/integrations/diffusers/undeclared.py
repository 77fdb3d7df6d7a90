"""What of a pipeline's networks is not as declared, and may therefore make rows of a batch depend on each other."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..plain_tensors import couples_rows, describe_tensor_type
from .method_swap import original_of

# Modules and hooks of these packages, and of ours, treat each row of a batch by itself.
MODULE_PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate")
SCALED_TOGETHER = ("torch.ao.nn.quantized.dynamic", "torch.ao.nn.intrinsic.quantized.dynamic")
PROCESSOR_PACKAGE = "diffusers.models"  # those in diffusers.pipelines let frames attend to the first one
COUPLING_PROCESSORS = ("PAG",)  # in names of processors that read guidance branches off the batch
STATELESS_HOOKS = (  # beginnings of names of diffusers' hooks; all others are those of caches
    "group_offloading",
    "lazy_prefetch_group_offloading",
    "layer_execution_tracker",
    "layerwise_casting",
    "peft_autocast_disable",
    "cp_",
)


@dataclass(frozen=True)
class Undeclared:
    """What is not as declared.

    Args:
        parts: In words: attention processors, classes and forward hooks.
        replaced: Modules whose `forward` was replaced, by what may keep state from call to call.
        caches: Names of hooks by which diffusers' caches keep state.
    """

    parts: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()


def find_undeclared(models: Sequence[Any]) -> Undeclared:
    """Look through all modules of these networks."""
    parts: dict[str, None] = {}  # dictionaries keep the order, and each once
    replaced: dict[str, None] = {}
    caches: dict[str, None] = {}
    kinds: dict[type, None] = {}
    for module in _list_modules(models):
        kind = original_of(type(module))
        kinds[kind] = None
        parts.update(dict.fromkeys(_list_additions(module, kind)))
        replaced.update(dict.fromkeys(f"a {kind.__name__}" for f in _list_own_forwards(module) if not _is_known(f)))
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", ())
        caches.update(dict.fromkeys(name for name in hooks if not name.startswith(STATELESS_HOOKS)))
    for kind in kinds:
        if not _is_known_module(kind.__module__):
            parts[f"{kind.__name__} of {kind.__module__}"] = None
        if _is_patched(kind, "forward"):
            replaced[kind.__name__] = None
    return Undeclared(tuple(parts), tuple(replaced), tuple(caches))


@dataclass
class NetworkWatch:
    """What is undeclared of networks, looked at again wherever a processor or a hook has been exchanged."""

    models: Sequence[Any]
    changes: int = 0  # how often something was exchanged
    _attentions: list[Any] = field(default_factory=list)  # modules that have a processor
    _hooks: list[Any] = field(default_factory=list)  # dictionaries of hooks of all modules
    _fingerprint: Any = None
    _found: Undeclared = field(default_factory=Undeclared)

    def look(self) -> Undeclared:
        """What is undeclared now."""
        if not self._hooks:
            modules = _list_modules(self.models)
            self._attentions = [m for m in modules if hasattr(m, "processor")]
            self._hooks = [hooks for m in modules for hooks in (m._forward_pre_hooks, m._forward_hooks)]
        processors = [id(m.processor) for m in self._attentions]
        hooks = [id(hook) for hooks in self._hooks if hooks for hook in hooks.values()]
        if self._fingerprint != (processors, hooks):
            self.changes += 1
            self._fingerprint = processors, hooks
            self._found = find_undeclared(self.models)
        return self._found

    def processor_states(self) -> list[dict[str, Any]]:
        """Numbers that undeclared attention processors hold: one that counts its calls must not be called twice."""
        strange = (m.processor for m in self._attentions if not _is_known_processor(type(m.processor)))
        return [{n: v for n, v in vars(p).items() if isinstance(v, int | float | str)} for p in strange]


def network_settings(models: Sequence[Any]) -> dict[str, Any]:
    """What of networks may be changed without a word: weights written to or exchanged, scales of adapters, processors.

    Returns:
        Name of a module -> what can be compared of it with an earlier or later look.
    """
    networks = [getattr(model, "_orig_mod", model) for model in models]
    found = {}
    for network in networks:
        for name, module in network.named_modules() if hasattr(network, "named_modules") else ():
            processor = getattr(module, "processor", None)
            own = {n: v for n, v in vars(module).items() if n not in _MODULE_ATTRIBUTES}
            weights = [
                (id(w), 0 if w.is_inference() else w._version) for w in module._parameters.values() if w is not None
            ]
            inner = _plain_settings(vars(processor)) if hasattr(processor, "__dict__") else ""
            found[f"{type(network).__name__}.{name}"] = (_plain_settings(own), id(processor), inner, weights)
    return found


_MODULE_ATTRIBUTES = frozenset(vars(torch.nn.Module()))  # of every module


def _plain_settings(values: Mapping[str, Any]) -> str:
    """Numbers and texts among attributes, in lists and dictionaries too."""
    return repr({name: value for name, value in values.items() if _is_plain_setting(value)})


def _is_plain_setting(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain_setting, value.values()))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain_setting, value))
    return value is None or isinstance(value, bool | int | float | str)


def _list_modules(models: Sequence[Any]) -> list[Any]:
    networks = (getattr(model, "_orig_mod", model) for model in models)  # of a compiled network, the network itself
    return [module for network in networks if hasattr(network, "modules") for module in network.modules()]


def _list_additions(module: Any, kind: type) -> Iterator[str]:
    """What has been put into one module: an attention processor, hooks, weights that quantise its inputs."""
    if (processor := getattr(module, "processor", None)) is not None and not _is_known_processor(type(processor)):
        yield f"the attention processor {type(processor).__name__}"
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if not _is_known(hook):
            yield f"a forward hook of {kind.__name__} ({_module_of(hook)})"
    for weights in module._parameters.values():
        if couples_rows(weights):
            yield f"{describe_tensor_type(weights)}: one scale for all rows, where PerRow has one for each"
    if kind.__module__.startswith(SCALED_TOGETHER):
        yield f"{kind.__name__} of {kind.__module__}: one scale for all rows"


def _list_own_forwards(module: Any) -> Iterator[Callable[..., Any]]:
    """Every `forward` that was put on a module itself, those that accelerate and diffusers have wrapped too."""
    found = [vars(module)[name] for name in ("forward", "_old_forward") if name in vars(module)]
    found += [r.forward for r in getattr(getattr(module, "_diffusers_hook", None), "_fn_refs", ())[:1]]
    usual = original_of(type(module)).forward
    yield from (function for function in found if getattr(function, "__func__", None) is not usual)


def _is_known(function: Callable[..., Any]) -> bool:
    """Whether a hook or a `forward` was written in one of the packages that are known, or in ours."""
    return _is_known_module(_module_of(function))


def _is_known_module(name: str) -> bool:
    return _is_of(name, MODULE_PACKAGES) or name.startswith("skipstone")


def _is_known_processor(kind: type) -> bool:
    reads_branches = any(word in kind.__name__ for word in COUPLING_PROCESSORS)
    return _is_of(kind.__module__, (PROCESSOR_PACKAGE,)) and not reads_branches and not _is_patched(kind, "__call__")


def _is_patched(kind: type, method: str) -> bool:
    """Whether a method of a class was written in another package than the class."""
    owner = next((k for k in kind.__mro__ if method in vars(k)), None)
    if owner is None:
        return False
    package = _module_of(inspect.unwrap(vars(owner)[method])).partition(".")[0]
    return package not in (owner.__module__.partition(".")[0], "torch")


def _module_of(function: Callable[..., Any]) -> str:
    """Name of the module in which a hook, a bound method or a partial was written."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _is_of(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
