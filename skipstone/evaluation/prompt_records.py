"""What a file of prompts holds, in the format that its name says: lines, the rows of a table, or JSON.

Nothing is guessed from the content: a text whose first line has commas in it is a text.
"""

from __future__ import annotations

import csv
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import PromptError
from ..json_files import JsonReader

FORMATS = ("txt", "csv", "tsv", "json", "jsonl")  # the ends of names, and what `prompt_format` takes
MAX_BYTES = 40_000_000  # of a file; COCO's captions of 2014 are 32 MB
MAX_RECORDS = 500_000  # of a file
MAX_CHARACTERS = 131_072  # of a line, a cell or a text: the limit of Python's own csv
MAX_LINES = 5_000_000  # of a file, empty ones too
MAX_JSON_MARKS = 5_000_000  # quotes and brackets: a file of brackets alone takes 24 times its size in memory


class PromptRecord(NamedTuple):
    """One line, row, object or value, and where it stands, for messages."""

    where: str
    value: Any


def resolve_format(path: Path, prompt_format: str | None = None) -> str:
    """The format of a file: `prompt_format`, or what its name ends with.

    Raises:
        PromptError: an unknown format, or a name that says none.
    """
    found = path.suffix.lower().removeprefix(".") if prompt_format is None else prompt_format
    if found in FORMATS:
        return found
    if prompt_format is not None:
        raise PromptError(f"Expected a format of prompts out of {', '.join(FORMATS)}, got {prompt_format!r}.")
    raise PromptError(
        f"{path}: expected a name that ends with {', '.join('.' + f for f in FORMATS)}. Rename it, or give its format: "
        f"--format txt (in Python prompt_format='txt') for one prompt a line."
    )


def read_records(path: Path, prompt_format: str | None = None) -> list[PromptRecord]:
    """The records of a file: texts of txt, mappings of csv and tsv, values of json and jsonl.

    Of json the only record is the document. Line ends are made equal, empty lines and rows are left out, and names of
    columns are in lower case.

    Args:
        path: Of a file of at most 40 MB in UTF-8.
        prompt_format: One of FORMATS; None takes the end of its name.

    Raises:
        PromptError: it cannot be read, is too large, or is not in that format.
    """
    form, text = resolve_format(path, prompt_format), _read_text(path)
    if form == "json":
        _check_marks(text, path)
        reader = JsonReader(PromptError, "For one object a line, say --format jsonl.")
        return [PromptRecord(str(path), reader.parse(text, str(path)))]
    if form == "jsonl":
        _check_marks(text, path)
        records = _json_lines(text, path)
    elif form == "txt":
        records = (PromptRecord(f"{path}, line {n}", unquote(line)) for n, line in _lines(text) if line.strip())
    else:
        records = _table(text, path, form)
    return limit_records(records, path)


def unquote(cell: str) -> str:
    """The text without the quotes that CSV puts around a comma or a quote; other quotes are part of the prompt."""
    cell = cell.strip()
    inner = cell[1:-1]
    wrapped = len(cell) > 2 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"').strip() if wrapped and ("," in inner or '""' in inner) else cell


def describe(value: Any) -> str:
    """A value in a message, however large or deep it is."""
    return reprlib.repr(value)[:200]


# -- text ----------------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    raw = _read_bytes(path)
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise PromptError(f"{path} is in UTF-16: save it in UTF-8.")
    try:
        text = raw.decode("utf-8-sig")  # DrawBench comes with the mark that this codec takes off
    except UnicodeDecodeError as e:
        raise PromptError(f"{path} is not text: expected UTF-8, got byte 0x{raw[e.start]:02x} at {e.start}.") from None
    if "\0" in text:
        raise PromptError(f"{path} is not text: it has a zero byte at {raw.index(0)}.")
    if not text.strip():
        raise PromptError(f"{path} is empty.")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.count("\n") > MAX_LINES:
        raise PromptError(f"{path} is too large: expected at most {MAX_LINES:,} lines. Divide it.")
    return text


def _read_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise PromptError(f"{path} is not a file.")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as e:  # ValueError: a name with a zero in it
        raise PromptError(f"{path} cannot be read: {getattr(e, 'strerror', None) or e}.") from None
    if len(raw) > MAX_BYTES:
        raise PromptError(f"{path} is too large: expected at most {MAX_BYTES:,} bytes. Divide it.")
    return raw


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; `str.splitlines` would also break at characters that prompts may have in them."""
    start, number = 0, 1
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield number, text[start:end]
        start, number = end + 1, number + 1


def limit_records(records: Iterable[PromptRecord], path: Path) -> list[PromptRecord]:
    """The records as a list. Raises PromptError where there are more than 500,000."""
    found = []
    for record in records:
        found.append(record)
        if len(found) > MAX_RECORDS:
            raise PromptError(f"{path} is too large: expected at most {MAX_RECORDS:,} prompts. Divide it.")
    return found


# -- tables --------------------------------------------------------------------------------------


def _table(text: str, path: Path, form: str) -> Iterator[PromptRecord]:
    """The rows under the header.

    In PartiPrompts a quote is a quote, in MLPerf's file it wraps a cell: in tables with tabs, only cells that are
    wrapped whole are unwrapped.
    """
    every = _csv_rows(text, path) if form == "csv" else _tsv_rows(text)
    rows = ((number, row) for number, row in every if any(cell.strip() for cell in row))
    names = _column_names(next(rows, (0, []))[1], path, form)
    for number, row in rows:
        if len(row) != len(names):
            raise PromptError(f"{path}, row {number}: expected {len(names)} cells ({_listed(names)}), got {len(row)}.")
        yield PromptRecord(f"{path}, row {number}", dict(zip(names, row, strict=True)))


def _column_names(header: Sequence[str], path: Path, form: str) -> list[str]:
    """The names of columns in lower case. Raises PromptError where two are the same, or it is another format."""
    names = [name.strip().lower() for name in header]
    other, sign = ("tsv", "\t") if form == "csv" else ("csv", ",")
    if len(names) == 1 and sign in names[0]:
        raise PromptError(f"{path} is not {form}: the only column is {names[0][:200]!r}. Say --format {other}.")
    if names and names[0].startswith(("{", "[")):
        raise PromptError(f"{path} is not {form}: its first line is {_listed(names)}. Say --format jsonl or json.")
    if len(set(names)) < len(names):
        raise PromptError(f"{path}: expected columns of different names, got {_listed(names)}.")
    return names


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in _lines(text):
        yield number, [unquote(cell) for cell in line.split("\t")]


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(line + "\n" for _, line in _lines(text))
    number = 0
    while True:
        number += 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise PromptError(f"{path}, row {number} (line {reader.line_num}) is not CSV: {e}.") from None
        yield number, row


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(names[:20])
    return text if len(text) <= 200 else f"{text[:200]}..."


# -- JSON ----------------------------------------------------------------------------------------


def _check_marks(text: str, path: Path) -> None:
    if sum(map(text.count, '"{[')) > MAX_JSON_MARKS:
        raise PromptError(f"{path} is too large: expected at most {MAX_JSON_MARKS:,} quotes and brackets. Divide it.")


def _json_lines(text: str, path: Path) -> Iterator[PromptRecord]:
    reader = JsonReader(PromptError, "For one JSON document, say --format json.")
    for number, line in _lines(text):
        if line.strip():
            where = f"{path}, line {number}"
            yield PromptRecord(where, reader.parse(line, where))
