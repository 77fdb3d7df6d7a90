"""Settings out of YAML: every key known, every value of its kind, and an error that names the line."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

from skipstone.errors import SpecError
from skipstone.registry import suggest_spelling

T = TypeVar("T")
NAME_KEY = "name"  # the key that says which of several kinds of settings follows
CHOICES_KEY = "among"  # in a field's metadata: a function that gives the kinds, name -> dataclass with defaults alone
DEFAULT_KEY = "default"  # beside it: the name that is taken where none is said


@dataclass(frozen=True)
class YamlEntry:
    """A value that was read, and where it stands: "agent.yaml, line 7"."""

    value: Any  # a mapping of entries, a list of entries, or a plain value
    where: str


def parse_settings(kind: type[T], text: str, source: str, changes: Iterable[str] = ()) -> T:
    """Settings out of a YAML text.

    Args:
        kind: A dataclass whose fields are plain values, tuples, or other such dataclasses. A field that holds one of
            several kinds has {AMONG: kinds, DEFAULT: name} for metadata; its key `name` says which, as a word alone
            does.
        text: YAML; empty is all defaults.
        source: What errors call it.
        changes: "a.b=c" each, applied in turn; values are read as YAML.

    Raises:
        SpecError: no YAML, a key that is not known or stands twice, a value of another kind or out of range.
    """
    entry = _parse_yaml(text, source)
    for change in changes:
        entry = _apply_change(entry, change)
    built: T = _build_settings(kind, entry, "")
    return built


def to_plain(settings: Any) -> Any:
    """Settings as mappings, lists and plain values, which `parse_settings` gives back as they were."""
    if is_dataclass(settings) and not isinstance(settings, type):
        found = {}
        for f in fields(settings):
            value = getattr(settings, f.name)
            name = {NAME_KEY: settings_name(f.metadata[CHOICES_KEY](), value)} if CHOICES_KEY in f.metadata else {}
            found[f.name] = {**name, **to_plain(value)} if name else to_plain(value)
        return found
    if isinstance(settings, Mapping):
        return {str(k): to_plain(v) for k, v in settings.items()}
    return [to_plain(v) for v in settings] if isinstance(settings, tuple | list) else settings


def settings_name(kinds: Mapping[str, type], settings: Any) -> str:
    """What the kind of these settings is called."""
    return next(name for name, kind in kinds.items() if kind is type(settings))


def to_yaml(settings: Any) -> str:
    """Settings as YAML."""
    import yaml

    text: str = yaml.safe_dump(
        to_plain(settings), sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )
    return text


# -- Text to entries --------------------------------------------------------------------------------


def _parse_yaml(text: str, source: str) -> YamlEntry:
    import yaml

    try:
        node, loader = _compose_yaml(text)
        return YamlEntry({}, source) if node is None else _node_to_entry(node, loader, source)
    except yaml.YAMLError as e:
        mark, told = getattr(e, "problem_mark", None), getattr(e, "problem", None) or getattr(e, "context", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"{source}{line}: expected YAML, 'key: value' on each line: {told or e}.") from None


def _compose_yaml(text: str) -> tuple[Any, Any]:
    """The node of a text, None of an empty one, and what makes values of it; aliases are refused, as they can loop."""
    import yaml

    alias = next((token for token in yaml.scan(text, yaml.SafeLoader) if isinstance(token, yaml.AliasToken)), None)
    if alias is not None:
        raise yaml.MarkedYAMLError(problem=f"*{alias.value} repeats another value", problem_mark=alias.start_mark)
    loader = yaml.SafeLoader(text)
    return loader.get_single_node(), loader


def _node_to_entry(node: Any, loader: Any, source: str, only: str = "") -> YamlEntry:
    """A node of YAML; `only` stands for a place that has no lines."""
    import yaml

    where = only or f"{source}, line {node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        found: dict[str, YamlEntry] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a word", problem_mark=key.start_mark)
            if key.value in found:
                raise SpecError(f"{source}, line {key.start_mark.line + 1}: {key.value!r} is there twice. Keep one.")
            here = only or f"{source}, line {key.start_mark.line + 1}"
            found[key.value] = YamlEntry(_node_to_entry(value, loader, source, only).value, here)
        return YamlEntry(found, where)
    if isinstance(node, yaml.SequenceNode):
        return YamlEntry([_node_to_entry(one, loader, source, only) for one in node.value], where)
    try:
        return YamlEntry(loader.construct_object(node), where)
    except ValueError as e:  # what looks like a date, and is none
        raise yaml.MarkedYAMLError(problem=f"{node.value!r}: {e}", problem_mark=node.start_mark) from None


def _apply_change(entry: YamlEntry, change: str) -> YamlEntry:
    """The tree after one "a.b=c"."""
    import yaml

    path, equals, text_value = change.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise SpecError(f"Expected KEY=VALUE, e.g. learner.name=search, got {change!r}.")
    try:
        node, loader = _compose_yaml(text_value)
        value = None if node is None else _node_to_entry(node, loader, change, change).value
    except yaml.YAMLError:
        raise SpecError(f"{change}: expected a YAML value after '='. Quote texts: {path}=\"'text'\".") from None
    return _set_entry(entry, keys, YamlEntry(value, change))


def _set_entry(entry: YamlEntry, keys: Sequence[str], leaf: YamlEntry) -> YamlEntry:
    if not keys:
        return leaf
    old = entry.value if isinstance(entry.value, dict) else {} if entry.value is None else {NAME_KEY: entry}
    found: dict[str, YamlEntry] = dict(old)
    found[keys[0]] = _set_entry(found.get(keys[0], YamlEntry({}, leaf.where)), keys[1:], leaf)
    if keys[0] == NAME_KEY and len(keys) == 1:  # another kind: what was said of the former one means nothing to it
        before = old.get(NAME_KEY)
        found = found if before is None or before.value == leaf.value else {NAME_KEY: leaf}
    return YamlEntry(found, entry.where)


# -- Entries to settings ----------------------------------------------------------------------------


def _build_settings(kind: type, entry: YamlEntry, path: str) -> Any:
    """A dataclass out of a mapping."""
    if not isinstance(entry.value, dict):
        raise SpecError(f"{entry.where}: expected keys of {path or 'the configuration'} below, got {entry.value!r}.")
    hints, known = typing.get_type_hints(kind), [f.name for f in fields(kind) if f.init]
    for key, value in entry.value.items():
        if key not in known:
            whose = path or "The configuration"
            raise SpecError(
                f"{value.where}: {whose} has no key {key!r}.{suggest_spelling(key, known)} It takes: "
                f"{', '.join(known)}."
            )
    arguments = {}
    for f in fields(kind):
        inner = f"{path}.{f.name}" if path else f.name
        if f.name in entry.value:
            given = entry.value[f.name]
            arguments[f.name] = (
                _build_choice(f.metadata[CHOICES_KEY](), given, inner, f)
                if CHOICES_KEY in f.metadata
                else _convert_value(hints[f.name], given, inner)
            )
        elif f.init and f.default is MISSING and f.default_factory is MISSING:
            raise SpecError(f"{entry.where}: {inner} is missing. Say {f.name}: ...")
    try:
        return kind(**arguments)
    except SpecError as e:
        raise SpecError(f"{entry.where}{f', {path}' if path else ''}: {e}") from None


def _build_choice(kinds: Mapping[str, type], entry: YamlEntry, path: str, f: Any) -> Any:
    """One of several kinds of settings."""
    keys = dict(entry.value) if isinstance(entry.value, dict) else {NAME_KEY: entry}
    name = keys.pop(NAME_KEY, YamlEntry(f.metadata[DEFAULT_KEY], entry.where))
    if name.value not in kinds:
        guess = suggest_spelling(str(name.value), list(kinds))
        raise SpecError(f"{name.where}: no {path} is called {name.value!r}.{guess} Known: {', '.join(kinds)}.")
    return _build_settings(kinds[name.value], YamlEntry(keys, entry.where), path)


def _convert_value(hint: Any, entry: YamlEntry, path: str) -> Any:
    """A plain value, or a tuple, or a dataclass."""
    origin, arguments, value = get_origin(hint), get_args(hint), entry.value
    if is_dataclass(hint):
        return _build_settings(hint, entry, path)  # type: ignore[arg-type]  # a class, not an instance
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, entry, path)
    if origin is Literal:
        return value if value in arguments else _refuse(entry, path, " or ".join(map(repr, arguments)))
    if origin in (tuple, Sequence, list) or hint is tuple:
        return _convert_tuple(arguments, entry, path)
    if hint is bool or isinstance(value, bool):
        return value if hint is bool and isinstance(value, bool) else _refuse(entry, path, _describe_kind(hint))
    if hint is float:
        return _convert_number(entry, path)
    if hint in (int, str):
        return value if isinstance(value, hint) else _refuse(entry, path, _describe_kind(hint))
    raise TypeError(f"{path}: settings of the kind {hint!r} cannot be read")


def _convert_tuple(arguments: tuple[Any, ...], entry: YamlEntry, path: str) -> tuple[Any, ...]:
    """A tuple: any number of one kind, or so many of these kinds. One value alone is a list of one."""
    any_number = len(arguments) != 2 or arguments[1] is Ellipsis
    any_number = any_number and (len(arguments) == 1 or arguments[-1] is Ellipsis)
    items = entry.value if isinstance(entry.value, list) else [entry] if any_number else None
    if items is None or isinstance(entry.value, dict) or (not any_number and len(items) != len(arguments)):
        wanted = "a list" if any_number else f"{len(arguments)} values"
        return _refuse(entry, path, f"{wanted} in square brackets")  # type: ignore[no-any-return]
    kinds = [arguments[0]] * len(items) if any_number else arguments
    return tuple(_convert_value(kind, item, path) for kind, item in zip(kinds, items, strict=True))


def _convert_union(kinds: Sequence[Any], entry: YamlEntry, path: str) -> Any:
    """The first of several kinds that the value is of."""
    if entry.value is None and type(None) in kinds:
        return None
    some = [k for k in kinds if k is not type(None)]
    if len(some) == 1:
        return _convert_value(some[0], entry, path)
    for kind in some:
        try:
            return _convert_value(kind, entry, path)
        except SpecError:
            continue
    return _refuse(entry, path, " or ".join(_describe_kind(k) for k in kinds))


def _convert_number(entry: YamlEntry, path: str) -> float:
    """A number; YAML takes 3e-4, which has no point, for a text."""
    try:
        if not isinstance(entry.value, int | float | str):
            raise ValueError
        value = float(entry.value)
        if value != value:
            raise ValueError
        return value
    except (ValueError, OverflowError):
        return float(_refuse(entry, path, "a number"))


def _describe_kind(kind: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    return words.get(kind, "a list in square brackets" if get_origin(kind) is tuple else str(kind))


def _refuse(entry: YamlEntry, path: str, wanted: str) -> Any:
    value = entry.value
    got = "several keys" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
    raise SpecError(f"{entry.where}: expected {path} to be {wanted}, got {got}.")
