"""Methods of one object replaced for a while, by a subclass made for it.

What torch's `parametrize` and FSDP2 do. Patches of the instance and hooks were measured to vanish without a word when a
model is offloaded; a subclass survives that, and it stays outside of everything: a call that is not passed on triggers
no transfer, no compiled graph and no collective.
"""

from __future__ import annotations

import copyreg
import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

_LOCK = threading.Lock()
# A network compiled in place is compiled again for every new class, and not at all after the eighth: it keeps its one.
_SUBCLASSES: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def swap_methods(obj: Any, methods: Mapping[str, Callable[..., Any]], **facts: Any) -> None:
    """Replace methods of an object; an object that already is swapped counts one more user.

    Args:
        obj: Whose class is replaced. Copies and pickles of it are of the original class.
        methods: Name -> function; the original is `original_class(self)` and its attribute of that name.
        facts: Attributes of the class made.
    """
    with _LOCK:
        kind = type(obj)
        if "_skipstone_users" in vars(kind):
            kind._skipstone_users += 1
            return
        made = _SUBCLASSES.get(obj)
        if made is None or made._skipstone_original is not kind or made._skipstone_methods != methods:
            made = _subclass(kind, methods, facts)
            if not facts:  # which may lead back to the object, and keep it alive
                _SUBCLASSES[obj] = made
        made._skipstone_users = 1
        obj.__class__ = made


def _subclass(kind: Any, methods: Mapping[str, Callable[..., Any]], facts: Mapping[str, Any]) -> Any:
    body: dict[str, Any] = {name: _wrap_method(function, getattr(kind, name)) for name, function in methods.items()}
    body |= {
        "_skipstone_original": kind,
        "_skipstone_methods": methods,
        "_skipstone_users": 0,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__new__": lambda _, *args, **kwargs: kind(*args, **kwargs),  # what `type(obj)` makes is of the original class
        "__reduce_ex__": _reduce_as_original,
        **facts,
    }
    return type(kind.__name__, (kind,), body)


def restore_methods(obj: Any) -> None:
    """Take back one `swap_methods`; the last one gives the object its class again."""
    with _LOCK:
        kind = type(obj)
        if "_skipstone_users" not in vars(kind):
            return
        kind._skipstone_users -= 1
        if kind._skipstone_users == 0:
            obj.__class__ = kind._skipstone_original


def original_class(obj: Any) -> Any:
    """The class that an object had before it was swapped."""
    return original_of(type(obj))


def original_of(kind: Any) -> Any:
    """A class, or the one that it was made from by `swap_methods`."""
    return vars(kind).get("_skipstone_original", kind)


def _wrap_method(function: Callable[..., Any], like: Any) -> Callable[..., Any]:
    """A function of its own that looks like the method whose place it takes: diffusers reads signatures."""

    @functools.wraps(like)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return method


def _reduce_as_original(self: Any, protocol: Any) -> Any:
    """Make copies and pickles of a swapped object instances of the original class."""
    kind = original_class(self)
    make, made_of, *state = kind.__reduce_ex__(self, protocol)
    if make is copyreg.__newobj__:  # type: ignore[attr-defined]  # pickle insists on the class of now
        make = kind.__new__
    return (make, tuple(kind if a is type(self) else a for a in made_of), *state)
