"""JSON of unknown origin: bounded in size and nesting, and every field held against its type."""

from __future__ import annotations

import json
import math
import os
import stat
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import SkipstoneError

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 50
DIGITS = 300  # of a whole number
SHOWN = 40  # characters of a value that a message shows
KINDS: Mapping[Any, tuple[str, tuple[type, ...]]] = {
    str: ("text", (str,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
    type(None): ("null", (type(None),)),
}


@dataclass(frozen=True)
class JsonReader:
    """Reads JSON that anybody may have written or damaged; every fault is one sentence, as the error given.

        reader = JsonReader(SpecError, "Save the policy again.")
        document = reader.convert(Mapping[str, Any], reader.read(path), str(path))

    Args:
        error: What is raised.
        advice: What to do instead, the end of every message.
        max_bytes: Size of the largest file that is read, >= 1.
        max_depth: How many lists and objects may be inside each other, in 1..100.
    """

    error: type[SkipstoneError]
    advice: str = ""
    max_bytes: int = MAX_BYTES
    max_depth: int = MAX_DEPTH

    def read(self, path: str | os.PathLike[str]) -> Any:
        """The document in a file. Raises `error` where it cannot be read or is no JSON, as `parse` does."""
        return self.parse(self.read_bytes(path), os.fspath(path))

    def read_bytes(self, path: str | os.PathLike[str]) -> bytes:
        """A regular file of at most `max_bytes`. Raises `error`."""
        where, raw = os.fspath(path), None
        try:
            if stat.S_ISREG(os.stat(path).st_mode):  # the end of a pipe may never come
                with Path(path).open("rb") as stream:
                    raw = stream.read(self.max_bytes + 1)
        except (OSError, ValueError) as e:  # ValueError: a zero byte in its name
            raise self.fault(f"{where} cannot be read: {getattr(e, 'strerror', None) or e}.") from None
        if raw is None:
            raise self.fault(f"{where}: expected a file, got a folder or a device.")
        if len(raw) > self.max_bytes:
            raise self.fault(f"{where}: expected a file of at most {self.max_bytes:,} bytes, got a larger one.")
        return raw

    def parse(self, raw: str | bytes, where: str) -> Any:
        """The document in a text: no name twice in an object, at most `max_depth` levels.

        NaN, Infinity and numbers like 1e400 are read as texts, so that `convert` refuses them where a number belongs.

        Args:
            raw: The text, in UTF-8 where it is bytes.
            where: What messages call it, its file for instance.

        Raises:
            SkipstoneError: of the class `error`.
        """
        try:
            text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
            found: Any = DECODER.decode(text)
        except UnicodeDecodeError as e:
            raise self.fault(f"{where} is not text: expected UTF-8, got another byte at {e.start}.") from None
        except RecursionError:
            raise self._depth_fault(where) from None
        except json.JSONDecodeError as e:
            raise self.fault(
                f"{where}: expected JSON, got something else in line {e.lineno}, column {e.colno} ({e.msg})."
            ) from None
        except ValueError as e:
            raise self.fault(f"{where}: {e}.") from None
        self._check_tree(found, where)
        return found

    def convert(self, kind: Any, value: Any, where: str) -> Any:
        """A value of a parsed document as `kind`; a dataclass is made from an object with its fields.

        Args:
            kind: str, int, float, bool, None, Any, Literal, a dataclass, Mapping[str, ...], tuple[..., ...],
                Sequence[...] (a tuple is made), or a union of these.
            value: What the document has there.
            where: The file and the place in it, "policy.json: certificate.points[0]".

        Raises:
            SkipstoneError: of the class `error`; it names the place, what was expected and what was got.
        """
        origin, inside = get_origin(kind) or kind, get_args(kind)
        if origin in (Union, types.UnionType):
            return self._convert_union(inside, value, where)
        if origin is Any or (origin is Literal and any(type(one) is type(value) and one == value for one in inside)):
            return value
        if is_dataclass(kind):
            return self._convert_fields(kind, self.convert(Mapping[str, Any], value, where), where)
        if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
            each = inside[1] if inside else Any
            return {name: self.convert(each, one, join(where, name)) for name, one in value.items()}
        if isinstance(origin, type) and origin is not str and issubclass(origin, Sequence) and isinstance(value, list):
            each = inside[0] if inside else Any
            return tuple(self.convert(each, one, f"{where}[{i}]") for i, one in enumerate(value))
        if _is_scalar(origin, value):
            return value
        raise self.type_fault(describe_kind(kind), value, where)

    def type_fault(self, expected: str, value: Any, where: str) -> SkipstoneError:
        """The error that says what was expected in a place, and what was got."""
        return self.fault(f"{where}: expected {expected}, got {describe_value(value)}.")

    def fault(self, message: str) -> SkipstoneError:
        """The error with this message and the advice."""
        return self.error(f"{message} {self.advice}".rstrip())

    def _convert_union(self, kinds: Sequence[Any], value: Any, where: str) -> Any:
        """As the first of the kinds whose outermost type fits, so that messages name the place inside it."""
        for kind in kinds:
            if _fits(kind, value):
                return self.convert(kind, value, where)
        raise self.type_fault(" or ".join(map(describe_kind, kinds)), value, where)

    def _convert_fields(self, cls: Any, value: Mapping[str, Any], where: str) -> Any:
        kinds = get_type_hints(cls)
        known = {f.name: f for f in fields(cls) if f.init}
        optional = {name for name, f in known.items() if (f.default, f.default_factory) != (MISSING, MISSING)}
        if missing := [name for name in known if name not in value and name not in optional]:
            raise self.fault(f"{where}: expected a field {missing[0]!r}, got none.")
        if unknown := [name for name in value if name not in known]:
            raise self.fault(f"{where}: expected no field {describe_value(unknown[0])}; known: {', '.join(known)}.")
        return cls(**{name: self.convert(kinds[name], one, join(where, name)) for name, one in value.items()})

    def _check_tree(self, found: Any, where: str) -> None:
        """Bound the nesting, and refuse texts that could not be written again."""
        for depth, value in _walk(found):
            if depth > self.max_depth:
                raise self._depth_fault(where)
            if isinstance(value, str) and not _is_encodable(value):
                raise self.fault(f"{where}: expected text, got half of a surrogate pair in {describe_value(value)}.")

    def _depth_fault(self, where: str) -> SkipstoneError:
        return self.fault(f"{where}: expected at most {self.max_depth} lists and objects inside each other, got more.")


def join(where: str, name: str) -> str:
    """The place of a field: 'policy.json: certificate' + 'points' -> 'policy.json: certificate.points'."""
    return f"{where}{'.' if ': ' in where else ': '}{name[:SHOWN]}"


def describe_kind(kind: Any) -> str:
    """'a whole number', 'a list', 'text or null'."""
    origin = get_origin(kind) or kind
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe_kind, get_args(kind)))
    if origin is Literal:
        return " or ".join(map(json.dumps, get_args(kind)))
    if origin in KINDS:
        return KINDS[origin][0]
    return "an object" if is_dataclass(kind) or issubclass(origin, Mapping) else "a list"


def describe_value(value: Any) -> str:
    """A value of a document for a message, cut to one short line."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _is_scalar(kind: Any, value: Any) -> bool:
    if kind not in KINDS or (isinstance(value, bool) and kind is not bool):
        return False
    return isinstance(value, KINDS[kind][1]) and (not isinstance(value, float) or math.isfinite(value))


def _fits(kind: Any, value: Any) -> bool:
    """Whether the outermost type of a value is that of the kind."""
    if kind is Any or get_origin(kind) is Literal or kind in KINDS:
        return kind is Any or (value in get_args(kind) if get_origin(kind) is Literal else _is_scalar(kind, value))
    return isinstance(value, dict if describe_kind(kind) == "an object" else list)


def _walk(found: Any) -> Iterator[tuple[int, Any]]:
    """Every value and name of a document, and how many lists and objects it is in; without recursion."""
    left = [(0, found)]
    while left:
        depth, value = left.pop()
        yield depth, value
        inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
        left += [(depth + 1, one) for one in inside]


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"expected each name once in an object, got {describe_value(name)} twice")
        found[name] = value
    return found


def _integer(text: str) -> int:
    """A whole number that a float can hold."""
    if len(text) > DIGITS:
        raise ValueError(f"expected whole numbers of at most {DIGITS} digits, got one of {len(text)}")
    return int(text)


def _number(text: str) -> float | str:
    """A number; its text where it is none that JSON has or a float can hold."""
    number = float(text)
    return number if math.isfinite(number) else text


DECODER = json.JSONDecoder(object_pairs_hook=_unique_names, parse_int=_integer, parse_float=_number, parse_constant=str)
