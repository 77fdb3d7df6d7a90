"""Settings out of YAML, checked by pydantic: every key is known, every value of its type."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass, replace
from functools import reduce
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import SpecError
from .registry import suggest_spelling

T = TypeVar("T")
NAME_KEY = "name"  # the key that says which of several kinds of settings follows
CHOICES_KEY = "among"  # in a field's metadata: a function that gives the kinds, name -> dataclass with defaults alone
MAX_CHARACTERS = 65_536  # of a YAML text: the reader takes a second for 200,000
MAX_INTEGER = 2**63 - 1
MAX_MESSAGE = 1000  # characters


def parse_settings(kind: type[T], text: str, source: str, changes: Iterable[str] = ()) -> T:
    """The settings in a YAML text, which errors call `source`, after changes "a.b=c". Raises SpecError."""
    try:
        return _parse(kind, text, source, changes)
    except SpecError as e:
        message = str(e)  # which repeats values, and these may be long
        raise SpecError(message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}...") from None


def _parse(kind: type[T], text: str, source: str, changes: Iterable[str]) -> T:
    values, places = _read_yaml(text, source) or {}, {"": source}
    for change in changes:
        path, equals, value = change.partition("=")
        keys = tuple(key.strip() for key in path.split("."))
        if not equals or not all(keys):
            raise SpecError(f"Expected KEY=VALUE, e.g. learner.name=search, got {change!r}.")
        values = _change_value(values, keys, _read_yaml(value, change))
        places[".".join(keys)] = change
    built: T = _build(kind, values, places)
    return built


def to_plain(settings: Any) -> dict[str, Any]:
    """Settings as mappings, lists and plain values."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    for f in (f for f in fields(settings) if CHOICES_KEY in f.metadata):
        name = settings_name(f.metadata[CHOICES_KEY](), getattr(settings, f.name))
        found[f.name] = {NAME_KEY: name, **found[f.name]}
    return found


def settings_name(kinds: Mapping[str, type], settings: Any) -> str:
    """What the kind of these settings is called."""
    return next(name for name, kind in kinds.items() if kind is type(settings))


def to_yaml(settings: Any) -> str:
    """Settings as YAML, which `parse_settings` reads back as they were."""
    plain = to_plain(settings)
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Plain YAML: keys once, no aliases, which a few lines can make billions of values of, and no tags."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        for sign, why in (
            ("anchor", "anchors and aliases (& and *) are not taken"),
            ("tag", "could not determine a constructor, as tags (!) are not taken"),
        ):
            if getattr(event, sign, None) is not None:
                raise yaml.MarkedYAMLError(problem=f"{why}: write the value itself", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="found unhashable key: a key is a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str, source: str) -> Any:
    """The values of a YAML text: mappings with texts as keys, lists, texts, numbers, truths and nothing."""
    if len(text) > MAX_CHARACTERS:
        raise SpecError(f"{source[:200]}: expected at most {MAX_CHARACTERS:,} characters, got {len(text):,}.")
    try:
        return _to_json(yaml.load(text, _Loader), source)
    except RecursionError:
        raise SpecError(f"{source}: expected YAML, and it is nested too deeply.") from None
    except (yaml.YAMLError, ValueError) as e:  # ValueError: a date that is none, a number of too many digits
        if isinstance(e, SpecError):
            raise
        mark, why = getattr(e, "problem_mark", None), getattr(e, "problem", None) or e
        line = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"{source}{line}: expected YAML, 'key: value' on each line: {why}.") from None


def _to_json(value: Any, source: str, path: str = "") -> Any:
    """A value of YAML as JSON has it, dates as texts. Raises SpecError for what JSON has no word for."""
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise SpecError(f"{source}, {path[1:]}: expected text, got half of a surrogate pair in {value!a}.")
    if isinstance(value, dict):
        for key in value:
            _to_json(str(key), source, path)
        return {str(key): _to_json(one, source, f"{path}.{key}") for key, one in value.items()}
    if isinstance(value, list):
        return [_to_json(one, source, f"{path}.{n}") for n, one in enumerate(value)]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INTEGER:
        raise SpecError(f"{source}, {path[1:]}: expected a whole number of at most {MAX_INTEGER}, got a larger one.")
    if isinstance(value, float) and math.isnan(value):
        raise SpecError(f"{source}: expected YAML with finite numbers, and {path[1:] or 'the value'} is NaN.")
    return value if isinstance(value, str | int | float | None) else str(value)


def _change_value(values: Any, keys: tuple[str, ...], new: Any) -> Any:
    """The values with a new one at this path; a new `name` drops the settings of the kind that was named before."""
    old = values if isinstance(values, dict) else {} if values is None else {NAME_KEY: values}
    if keys == (NAME_KEY,) and old.get(NAME_KEY, new) != new:
        old = {}
    return {**old, keys[0]: _change_value(old.get(keys[0]), keys[1:], new) if keys[1:] else new}


def _build(kind: type, values: Any, places: Mapping[str, str], path: str = "") -> Any:
    """A dataclass out of plain values; `places` says for a path of keys where it was set."""
    chosen = {}
    for f in fields(kind) if isinstance(values, dict) else ():
        if CHOICES_KEY in f.metadata and f.name in values:
            kinds, own, inner = f.metadata[CHOICES_KEY](), values.pop(f.name), f"{path}{f.name}."
            own = own if isinstance(own, dict) else {NAME_KEY: own}
            if (name := own.pop(NAME_KEY, next(iter(kinds)))) not in list(kinds):
                place = _place(places, inner + NAME_KEY)
                guess = suggest_spelling(str(name), list(kinds))
                raise SpecError(f"{place}: no {f.name} is called {name!r}.{guess} Known: {', '.join(kinds)}.")
            chosen[f.name] = _build(kinds[name], own, places, inner)
    # In a tuple, as a dataclass alone takes no `config`; from JSON, where a mapping and a list are of strict types.
    adapter: TypeAdapter[Any] = TypeAdapter(tuple[kind], config=ConfigDict(strict=True, extra="forbid"))  # type: ignore[valid-type]
    values = [values]
    while True:
        try:
            return replace(adapter.validate_json(json.dumps(values))[0], **chosen)
        except ValidationError as e:
            error = e.errors()[0]
        if not _convert(values, error):
            raise SpecError(_explain(kind, error, places, path))


def _convert(values: Any, error: Any) -> bool:
    """Put the value of an error right where it can be: one value is a list of one, and YAML reads 3e-4 as a text."""
    *outer, key = error["loc"]
    value, inside = error["input"], reduce(lambda found, k: found[k], outer, values)
    if error["type"] == "tuple_type" and not isinstance(value, dict):
        inside[key] = [value]
        return True
    if error["type"] == "float_type" and isinstance(value, str):
        with suppress(ValueError):
            inside[key] = float(value)
            return not math.isnan(inside[key])
    return False


def _explain(kind: type, error: Any, places: Mapping[str, str], path: str) -> str:
    keys = [str(key) for key in error["loc"][1:]]
    name = (path + ".".join(keys)).strip(".")
    place, message = _place(places, name), error["msg"].replace("Input should be", "expected")
    if error["type"] == "unexpected_keyword_argument":
        owner, known = name.rpartition(".")[0], [f.name for f in fields(reduce(_type_of_field, keys[:-1], kind))]
        guess = suggest_spelling(keys[-1], known)
        return f"{place}: {owner or 'The configuration'} has no key {keys[-1]!r}.{guess} It takes: {', '.join(known)}."
    if error["type"] == "value_error":  # out of `__post_init__`
        return f"{place}{name and ', '}{name}: {error['ctx']['error']}"
    return f"{place}{name and ', '}{name}: {message}, got {error['input']!r}."


def _place(places: Mapping[str, str], path: str) -> str:
    return places[max((key for key in places if f"{path}.".startswith(key and f"{key}.")), key=len)]


def _type_of_field(kind: type, name: str) -> type:
    """The dataclass of a field, which may be None."""
    hint = get_type_hints(kind)[name]
    return next(one for one in (hint, *get_args(hint)) if isinstance(one, type) and is_dataclass(one))
