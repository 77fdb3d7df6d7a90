"""Prompt sets as their authors publish them, recognised by what a file holds rather than by its name.

table, with a header        Prompt / caption, Category, id      PartiPrompts, DrawBench, COCO as MLPerf samples it
JSON Lines                  prompt / caption, tag, id           GenEval, DPG-Bench
JSON list of objects        prompt_en / caption, dimension, id  VBench, TIFA
JSON with `annotations`     caption, image_id                   COCO's own captions_val2014.json
text, one prompt a line                                         DrawBench, COCO 30k, VBench 2, anybody's
folder of texts             a category a file                   T2I-CompBench, VBench
folder of one-line texts    a prompt a file                     DPG-Bench
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..deprecation import old_names
from ..errors import PromptError
from .prompt import Prompt

# Names of fields, the best first; compared in lower case.
TEXT_FIELDS = ("prompt", "caption", "prompt_en", "text")
CATEGORY_FIELDS = ("category", "tag", "dimension")
ID_FIELDS = ("id",)
PROMPT_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl")
LICENSE_NAMES = ("license", "licence", "readme", "copyright", "notice", "manifest")  # that lie beside prompts
FORMATS_HINT = (
    "a table with a column Prompt, JSON Lines with a field prompt, a JSON list of such objects, COCO's annotations, or "
    "text with one prompt a line"
)


class PromptEntry(NamedTuple):
    """One prompt as a file has it."""

    text: str
    category: str = ""
    id: str = ""  # empty where the file has none


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file or folder, in the order of the file.

    Raises:
        PromptError: it cannot be read, is not text, has no prompts, or the ids in it are not unique.
    """
    prompts = _folder(path) if path.is_dir() else _numbered(_file(path))
    if not prompts:
        raise PromptError(f"{path} holds no prompts.")
    seen: dict[str, int] = {}
    for place, prompt in enumerate(prompts, 1):
        if prompt.id in seen:
            raise PromptError(
                f"{path}: expected ids of their own, got {prompt.id!r} for prompts {seen[prompt.id]} and {place}."
            )
        seen[prompt.id] = place
    return prompts


def _numbered(entries: Sequence[PromptEntry], prefix: str = "") -> list[Prompt]:
    """Entries with ids: their own, or their place and a hash of their text."""
    return [
        Prompt(e.id or f"{prefix}{place:04d}-{hashlib.sha256(e.text.encode()).hexdigest()[:6]}", e.text, e.category)
        for place, e in enumerate(entries, 1)
    ]


# -- folders -------------------------------------------------------------------------------------


def _folder(path: Path) -> list[Prompt]:
    files = sorted(
        f for f in path.iterdir() if f.suffix.lower() in PROMPT_SUFFIXES and f.is_file() and not _is_license(f)
    )
    if not files:
        raise PromptError(f"{path} holds no file of prompts ({', '.join(PROMPT_SUFFIXES)}).")
    if len(files) == 1:
        return _numbered(_file(files[0]))
    if any(f.suffix.lower() != ".txt" for f in files):
        raise PromptError(f"{path} holds several files of prompts. Name one: {', '.join(f.name for f in files)}.")
    # T2I-CompBench: color.txt is color_train.txt and color_val.txt, and the last is what one evaluates on.
    lists = [f for f in files if f.stem.endswith("_val")]
    texts = {f.stem.removesuffix("_val"): _lines(_text(f)) for f in lists or files}
    if all(len(lines) == 1 for lines in texts.values()):
        return [Prompt(stem, lines[0]) for stem, lines in texts.items()]
    return [
        prompt
        for stem, lines in texts.items()
        for prompt in _numbered([PromptEntry(t, stem) for t in lines], f"{stem}-")
    ]


def _is_license(path: Path) -> bool:
    return path.name.lower().startswith(LICENSE_NAMES)


# -- files ---------------------------------------------------------------------------------------


def _file(path: Path) -> list[PromptEntry]:
    text = _text(path)
    whole, first = _json(text), _json(text.lstrip().split("\n", 1)[0])
    if isinstance(whole, dict | list):
        return _objects(whole, path)
    if path.suffix.lower() in (".json", ".jsonl") or isinstance(first, dict):
        return _json_lines(text, path)
    table = _table(text, path)
    return [PromptEntry(line) for line in _lines(text)] if table is None else table


def _text(path: Path) -> str:
    """The file as text, line ends made equal. Raises PromptError."""
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise PromptError(f"{path} cannot be read: {e.strerror or e}.") from None
    try:
        text = raw.decode("utf-8-sig")  # DrawBench comes with the mark that this codec takes off
    except UnicodeDecodeError as e:
        raise PromptError(f"{path} is not text: expected UTF-8, got byte 0x{raw[e.start]:02x} at {e.start}.") from None
    if "\0" in text:
        raise PromptError(f"{path} is not text: it has a zero byte at {raw.index(0)}.")
    if not text.strip():
        raise PromptError(f"{path} is empty.")
    return io.StringIO(text, newline=None).read()


def _lines(text: str) -> list[str]:
    """Lines that are not empty; `str.splitlines` would also break at characters that prompts may have in them."""
    return [_unquote(line) for line in text.split("\n") if line.strip()]


def _unquote(cell: str) -> str:
    """The text without the quotes that CSV puts around a comma or a quote; other quotes are part of the prompt."""
    cell = cell.strip()
    if re.fullmatch(r'"(?:[^"]|"")+"', cell) and re.search(r',|""', cell[1:-1]):
        return cell[1:-1].replace('""', '"').strip()
    return cell


def _table(text: str, path: Path) -> list[PromptEntry] | None:
    """The rows of a table whose header names a column of prompts; None where the file is text.

    In PartiPrompts a quote is a quote, in MLPerf's file it wraps a cell: of tables with tabs, only cells that are
    wrapped whole are unwrapped.
    """
    tabbed = "\t" in text.split("\n", 1)[0]
    try:
        rows = (
            [[_unquote(cell) for cell in line.split("\t")] for line in text.split("\n")]
            if tabbed
            else list(csv.reader(io.StringIO(text, newline="")))
        )
    except csv.Error:  # a line longer than it takes
        rows = [[]]
    names = [name.strip().lower() for name in rows[0]]
    named = path.suffix.lower() in (".csv", ".tsv")
    if not set(names) & set(TEXT_FIELDS):
        if named:
            raise PromptError(
                f"{path}: expected a column {' or '.join(TEXT_FIELDS)}, got {', '.join(names)[:200] or 'none'}."
            )
        return None
    if len(names) < 2 and not named:
        return None  # a prompt of one word
    found = []
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(names):
            raise PromptError(
                f"{path}, row {number}: expected {len(names)} cells ({', '.join(names)}), got {len(row)}."
            )
        found.append(_entry(dict(zip(names, row, strict=True)), f"{path}, row {number}"))
    return found


def _json(text: str) -> Any:
    """The value of a JSON document, None of anything else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json_lines(text: str, path: Path) -> list[PromptEntry]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(_entry(json.loads(line), f"{path}, line {number}"))
        except ValueError as e:
            if isinstance(e, PromptError):
                raise
            raise PromptError(f"{path}, line {number} is not JSON: {e}. Expected {FORMATS_HINT}.") from None
    return found


def _objects(found: Any, path: Path) -> list[PromptEntry]:
    """The prompts of one JSON document."""
    if isinstance(found, dict) and isinstance(found.get("annotations"), list):
        return _annotations(found["annotations"], path)
    if isinstance(found, dict):
        found = [found]  # JSON Lines of a single line
    if not isinstance(found, list):
        raise PromptError(f"{path}: expected {FORMATS_HINT}, got a JSON {type(found).__name__}.")
    entries = [
        PromptEntry(one.strip()) if isinstance(one, str) else _entry(one, f"{path}, item {number}")
        for number, one in enumerate(found, 1)
    ]
    sources = {e.id.rpartition("_")[0] for e in entries}
    if all(sources) and not any(e.category for e in entries):
        return [e._replace(category=e.id.rpartition("_")[0]) for e in entries]  # TIFA: coco_301091, drawbench_0
    return entries


def _annotations(annotations: Sequence[Mapping[str, Any]], path: Path) -> list[PromptEntry]:
    """COCO's captions: the first of each image, as five prompts for one picture would weigh it five times."""
    first: dict[Any, tuple[Any, str]] = {}
    for number, one in enumerate(annotations, 1):
        try:
            image, this = one["image_id"], (one["id"], str(one["caption"]).strip())
        except (KeyError, TypeError):
            raise PromptError(f"{path}, annotation {number}: expected image_id, id and caption, got {one!r}.") from None
        first[image] = min(first.get(image, this), this)
    return [PromptEntry(caption, "", str(image)) for image, (_, caption) in sorted(first.items())]


def _entry(one: Any, where: str) -> PromptEntry:
    """The prompt of an object or a row. Raises PromptError."""
    fields = {str(name).lower(): value for name, value in one.items()} if isinstance(one, Mapping) else {}
    text = _first(fields, TEXT_FIELDS)
    if not text:
        got = f"the fields {', '.join(fields)}" if fields else repr(one)
        raise PromptError(f"{where}: expected a text under {' or '.join(TEXT_FIELDS)}, got {got[:200]}.")
    return PromptEntry(text, _first(fields, CATEGORY_FIELDS), _first(fields, ID_FIELDS))


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of the fields that is not empty; of a list, its first: VBench's first dimension is the prompt's."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, str | int) and str(value).strip():
            return str(value).strip()
    return ""


__getattr__ = old_names(__name__, {"read": "read_prompts"})
