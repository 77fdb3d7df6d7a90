"""JSON that anybody may have damaged: every fault is one error of the class asked for, and names the place."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skipstone.errors import PromptError, SpecError
from skipstone.json_files import JsonReader

READER = JsonReader(SpecError, "Save it again.")


@dataclass(frozen=True)
class Part:
    name: str
    weight: float
    count: int | None = None
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    settings: Mapping[str, Any]
    on: bool
    first: Part | None = None
    words: Sequence[str] = field(default=())


WHOLE = Whole((Part("x", 1.5, 3), Part("y", 2)), {"a": [1, None]}, True, Part("z", 0.0, kind="b"), ("one", "two"))
DOCUMENT: dict[str, Any] = json.loads(json.dumps(asdict(WHOLE)))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value whose type is declared: all but those under `settings`."""
    yield path
    if path[:1] != ("settings",):
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, one in inside:
            yield from places(one, (*path, name))


def changed(path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value in one place."""
    if not path:
        return value
    document = copy.deepcopy(DOCUMENT)
    at = document
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return document


def test_a_dataclass_comes_back_as_it_was_written() -> None:
    assert READER.convert(Whole, DOCUMENT, "f.json") == WHOLE


@pytest.mark.parametrize("path", list(places(DOCUMENT)), ids=str)
def test_another_type_in_any_place_is_refused_by_its_place(path: tuple[Any, ...]) -> None:
    said = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in path).removeprefix(".")
    kept = READER.convert(Whole, DOCUMENT, "f.json")
    refusals = []
    for value in (None, True, 7, 0.5, "text", "b", [1], {"a": 1}):
        try:
            found = READER.convert(Whole, changed(path, value), "f.json")
        except SpecError as e:
            refusals.append(str(e))
        else:  # of the declared type, and then it is the only thing that differs
            assert kept != found or changed(path, value) == DOCUMENT
    assert len(refusals) >= 4
    for refusal in refusals:
        assert refusal.startswith(f"f.json: {said}" if said else "f.json")
        assert "expected" in refusal
        assert refusal.endswith("Save it again.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"on": ...}, "f.json: expected a field 'on', got none"),
        ({"extra": 1}, 'f.json: expected no field "extra"; known: parts, settings'),
        ({"first": {"name": "x", "weight": "heavy"}}, 'f.json: first.weight: expected a number, got "heavy"'),
        ({"first": [1, 2]}, "f.json: first: expected an object or null, got a list of 2"),
        ({"parts": {}}, "f.json: parts: expected a list, got an object of 0"),
        ({"on": 1}, "f.json: on: expected true or false, got 1"),
        ({"parts": [{"name": "x", "weight": "NaN"}]}, 'f.json: parts[0].weight: expected a number, got "NaN"'),
    ],
)
def test_messages_say_what_was_expected_and_got(change: dict[str, Any], said: str) -> None:
    document = {name: value for name, value in {**DOCUMENT, **change}.items() if value is not ...}
    with pytest.raises(SpecError) as refused:
        READER.convert(Whole, document, "f.json")
    assert said in str(refused.value)


# -- Texts ------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=10,
)  # fmt: skip


@given(JSON)
def test_every_document_is_read_as_json_reads_it(value: Any) -> None:
    text = json.dumps(value, allow_nan=False)
    assert READER.parse(text, "f.json") == value
    assert READER.parse(b"\xef\xbb\xbf" + text.encode(), "f.json") == value


@given(st.binary() | st.text() | JSON.map(lambda value: json.dumps(value)[:-1]))
@example(b"\xff\xfe")
@example("[" * 100_000)
@example('{"a":' * 100_000)
@example("[" * 51 + "]" * 51)
@example("NaN")
@example("[-Infinity]")
@example("1e400")
@example("9" * 400)
@example("9" * 5000)
@example('{"a": 1, "a": 2}')
@example('"\\ud800"')
@example('{"\\udc00": 1}')
def test_any_other_text_is_one_error(raw: bytes | str) -> None:
    refusal = "f.json"
    try:
        found = READER.parse(raw, "f.json")
        assert json.loads(json.dumps(found, allow_nan=False)) == found  # it can be written and read again
    except SpecError as e:
        refusal = str(e)
    assert refusal.startswith("f.json")
    assert len(refusal) < 300
    refusal.encode()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e999"])
def test_numbers_that_json_does_not_have_are_read_as_texts(number: str) -> None:
    found = READER.parse(f'{{"notes": [{number}]}}', "f.json")
    assert found == {"notes": [number]}
    with pytest.raises(SpecError, match=r"notes\[0\]: expected a number, got"):
        READER.convert(Mapping[str, Sequence[float]], found, "f.json")


def test_the_error_is_of_the_class_asked_for_and_the_limits_are_those_given() -> None:
    reader = JsonReader(PromptError, max_bytes=10, max_depth=1)
    assert reader.parse("[1]", "f") == [1]
    with pytest.raises(PromptError, match="at most 1 lists"):
        reader.parse("[[1]]", "f")


def test_what_is_no_readable_file_is_refused_without_being_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b" " * 11)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    reader = JsonReader(SpecError, max_bytes=10)
    for name, said in {
        "large": "at most 10 bytes",
        "pipe": "expected a file",
        ".": "expected a file",
        "nowhere": "cannot be read",
        "loop": "cannot be read",
        "a\0b": "cannot be read",
        "x" * 5000: "cannot be read",
    }.items():
        with pytest.raises(SpecError, match=said):
            reader.read(tmp_path / name)
