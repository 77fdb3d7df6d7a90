"""A space of a user's own, out of a YAML file: every key is known, every value within the range of its setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from .. import registry
from ..errors import SpecError
from ..numerics.grid import Grid
from ..policies.guidance_gate import GuidanceGate
from ..satellites import require_module
from ..settings import Ranges, describe_setting, field_types, shorten
from .candidates import CALIBRATION, GATE, PATH_SETTINGS, TUNED, calibration_settings, check_solver
from .space import MAX_DIMENSIONS, MAX_VALUES, POLICY, Dimension, Space, dimensions_of, spread

MAX_BYTES = 65_536  # of a file
RANGE_KEYS = ("low", "high", "levels", "log")
PATH_RANGES: Ranges = {"early": (0.25, 4.0), "late": (0.25, 4.0), "shift": (-0.9, 0.9), "more_steps": (0, 20)}
PATH_WORDS = ("times", "solver")
WHOLE = ("more_steps",)
GATE_POLICY = GuidanceGate.name
REFUSED = {
    "guidance": "is not searched: closeness is measured to the model's own full run, which has the guidance that it "
    "has. Say --guidance for all of it; guidance_gate searches where its unconditional branch is computed",
    "dtype": "is not searched: say --dtype, and tune once for each",
    "compile": "is not searched: it changes neither pictures nor calls",
    "rows": "is not searched: rows of a call change neither pictures nor calls. skipstone latency measures them",
}
REFUSED |= {"guidance_scale": REFUSED["guidance"], "precision": REFUSED["dtype"], "batch": REFUSED["rows"]}


def read_space(path: Path) -> Space:
    """The space of a file.

    Raises:
        SpecError: no YAML, a key that is not known, a value out of range, or nothing to choose from.
        MissingPackage: PyYAML is not installed.
    """
    return parse_space(_read_yaml(path), str(path))


def parse_space(document: Any, where: str) -> Space:
    """The space of a mapping.

    Args:
        document: Policy -> setting -> values; "policy" may list those that count.
        where: What messages call it.

    Raises:
        SpecError: as `read_space`.
    """
    if not isinstance(document, Mapping) or not document:
        raise SpecError(f"{where}: the space is empty: expected policies and what to try of each, got {document!r}.")
    for key in document:
        _check_key(key, where)
    names = [key for key in document if key not in (POLICY, GATE_POLICY)]
    chosen = document.get(POLICY, names)
    if not isinstance(chosen, list) or not chosen or not all(isinstance(one, str) for one in chosen):
        raise SpecError(f"{where}: {POLICY}: expected a list of names, at least one, got {shorten(chosen)}.")
    for name in chosen:
        _check_key(name, where)
    dimensions = [Dimension(POLICY, tuple(dict.fromkeys(chosen)))]
    for name in dimensions[0].values:
        dimensions += dimensions_of(name, _settings(name, document.get(name), where))
    if GATE_POLICY in document:
        found = _settings(GATE_POLICY, document[GATE_POLICY], where)
        if set(found) != {"below"}:
            raise SpecError(f"{where}: {GATE_POLICY}: expected below alone, got {', '.join(found) or 'nothing'}.")
        dimensions.append(Dimension(GATE, tuple(found["below"])))
    if len(dimensions) > MAX_DIMENSIONS:
        raise SpecError(f"{where}: expected at most {MAX_DIMENSIONS} dimensions, got {len(dimensions)}.")
    return Space(tuple(dimensions))


def _check_key(key: Any, where: str) -> None:
    if key in REFUSED:
        raise SpecError(f"{where}: {key} {REFUSED[key]}.")
    known = registry.names("policy")
    if key != POLICY and key not in known:
        guess = registry.suggest_spelling(str(key), (POLICY, *known))
        raise SpecError(f"{where}: no policy is called {shorten(key)}.{guess} Known: {', '.join(known)}.")


def _settings(policy: str, said: Any, where: str) -> dict[str, Sequence[Any]]:
    """Setting -> values of one policy; of none, the settings that it brings for calibration."""
    where = f"{where}: {policy}"
    if said in (None, CALIBRATION):
        ladder = calibration_settings(policy)
        return {CALIBRATION: tuple(ladder)} if ladder else {}
    if not isinstance(said, Mapping):
        raise SpecError(f"{where}: expected settings and what to try of each, or {CALIBRATION}, got {shorten(said)}.")
    return {str(name): _values(policy, name, values, f"{where}.{name}") for name, values in said.items()}


def _values(policy: str, name: Any, said: Any, where: str) -> tuple[Any, ...]:
    """The values of one setting, each held against its type and range."""
    is_path = policy == "path"
    known = PATH_SETTINGS if is_path else tuple(field_types(registry.find_class("policy", policy)))
    if name not in known:
        raise SpecError(
            f"{where}: {policy} has nothing to search of that name.{registry.suggest_spelling(str(name), known)} "
            f"It has: {', '.join(known)}."
        )
    if is_path and name in PATH_WORDS:
        return _words(name, said, where)
    whole = name in WHOLE if is_path else _is_whole(policy, name)
    ranges: Ranges = PATH_RANGES if is_path else getattr(registry.find_class("policy", policy), "ranges", {})
    found = _from_range(said, where, whole) if isinstance(said, Mapping) else _listed(said, where)
    for value in found:
        if name not in ranges:
            _check_word(policy, name, value, where)
            continue
        low, high = ranges[name]
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            kind = "whole numbers" if whole else "numbers"
            raise SpecError(f"{where}: expected {kind} in [{low:g}, {high:g}], got {shorten(value)}.")
    return tuple(sorted(set(found))) if name in ranges else found


def _is_whole(policy: str, name: str) -> bool:
    return field_types(registry.find_class("policy", policy))[name] is int


def _check_word(policy: str, name: str, value: Any, where: str) -> None:
    """Hold a value that is no number against the annotation of its setting."""
    kind = field_types(registry.find_class("policy", policy))[name]
    choices = get_args(kind) if get_origin(kind) is not tuple else ()
    if (choices and value not in choices) or not isinstance(value, str | bool):
        what = describe_setting(registry.find_class("policy", policy), name)
        raise SpecError(f"{where}: expected {what}, got {shorten(value)}.")


def _words(name: str, said: Any, where: str) -> tuple[str, ...]:
    found = _listed(said, where)
    for value in found:
        if name == "solver":
            check_solver(str(value))
        elif value != TUNED:
            grid: Grid = registry.parse("grid", value)  # raises with the nearest known name
            assert grid is not None
    return found


def _listed(said: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(said, list) or not 1 <= len(said) <= MAX_VALUES:
        raise SpecError(
            f"{where}: expected a list of 1 to {MAX_VALUES} values, or {{low: ..., high: ...}}, got {shorten(said)}."
        )
    return tuple(said)


def _from_range(said: Mapping[Any, Any], where: str, whole: bool) -> tuple[Any, ...]:
    """The values of {low, high, levels, log}."""
    for key in said:
        if key not in RANGE_KEYS:
            guess = registry.suggest_spelling(str(key), RANGE_KEYS)
            raise SpecError(f"{where}: expected low, high, levels and log, got {shorten(key)}.{guess}")
    low: Any = said.get("low")
    high: Any = said.get("high")
    if not _is_number(low) or not _is_number(high) or not low < high:
        raise SpecError(f"{where}: expected low below high, got low: {shorten(low)} and high: {shorten(high)}.")
    log = said.get("log", False)
    if not isinstance(log, bool) or (log and low <= 0):
        raise SpecError(f"{where}: expected log: true with a low above 0, or false, got {shorten(log)} and low: {low}.")
    usual = min(MAX_VALUES, round(high - low) + 1) if whole and not log else 9
    levels = said.get("levels", usual)
    if not isinstance(levels, int) or isinstance(levels, bool) or not 2 <= levels <= MAX_VALUES:
        raise SpecError(f"{where}: expected levels in 2..{MAX_VALUES}, got {shorten(levels)}.")
    return spread(low, high, levels, log, whole)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_yaml(path: Path) -> Any:
    """The document of a file: small, without aliases, of which a few lines make billions of values."""
    require_module("yaml", "train")
    import yaml

    try:
        raw = path.read_bytes()
    except OSError as e:
        raise SpecError(f"--space: {path} cannot be read: {e.strerror}.") from None
    if len(raw) > MAX_BYTES:
        raise SpecError(f"--space: expected a file of at most {MAX_BYTES:,} bytes, {path} has {len(raw):,}.")
    try:
        text = raw.decode("utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise SpecError(f"{path}: aliases (& and *) are not taken: write the value itself.")
        return yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as e:
        where = getattr(e, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise SpecError(f"{path}: expected YAML, got something else{line}.") from None
