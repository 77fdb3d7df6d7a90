"""Prompt sets as their authors publish them; the end of a file's name, or `prompt_format`, says its format.

.csv, .tsv   a table with a header: Prompt / caption, Category, id    PartiPrompts, DrawBench, COCO as MLPerf samples it
.jsonl       an object a line: prompt / caption, tag, id              GenEval, DPG-Bench
.json        a list of objects: prompt_en / caption, dimension, id    VBench, TIFA
.json        `annotations`: caption, image_id                         COCO's own captions_val2014.json
.txt         one prompt a line, whatever the lines say                DrawBench, COCO 30k, VBench 2, anybody's
folder       of .txt: a category a file                               T2I-CompBench, VBench
folder       of .txt with one line each: a prompt a file              DPG-Bench
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..deprecation import old_names
from ..errors import PromptError
from .prompt import Prompt
from .prompt_records import (
    FORMATS,
    MAX_BYTES,
    MAX_CHARACTERS,
    PromptRecord,
    describe,
    limit_records,
    read_records,
    resolve_format,
)

# Names of fields, the best first; compared in lower case.
TEXT_FIELDS = ("prompt", "caption", "prompt_en", "text")
CATEGORY_FIELDS = ("category", "tag", "dimension", "domain", "label")
ID_FIELDS = ("id",)
LICENSE_NAMES = ("license", "licence", "readme", "copyright", "notice", "manifest")  # that lie beside prompts


class PromptEntry(NamedTuple):
    """One prompt as a file has it."""

    text: str
    category: str = ""
    id: str = ""  # empty where the file has none


def read_prompts(path: Path, prompt_format: str | None = None) -> list[Prompt]:
    """The prompts of a file or folder, in the order of the file.

    Args:
        path: Of a file of at most 40 MB and 500,000 prompts, or of a folder of such files.
        prompt_format: txt, csv, tsv, json or jsonl; None takes the end of the name.

    Raises:
        PromptError: it cannot be read, is too large, is not in that format, has no prompts, or the ids in it are not
            unique.
    """
    prompts = _folder(path, prompt_format) if path.is_dir() else _numbered(_file(path, prompt_format))
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


def _folder(path: Path, prompt_format: str | None) -> list[Prompt]:
    suffixes = tuple(f".{name}" for name in FORMATS)
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in suffixes and f.is_file() and not _is_license(f))
    if not files:
        raise PromptError(f"{path} holds no file of prompts ({', '.join(suffixes)}).")
    if len(files) == 1:
        return _numbered(_file(files[0], prompt_format))
    if any(f.suffix.lower() != ".txt" for f in files):
        raise PromptError(f"{path} holds several files of prompts. Name one: {', '.join(f.name for f in files)}.")
    if sum(f.stat().st_size for f in files) > MAX_BYTES:
        raise PromptError(f"{path} is too large: expected at most {MAX_BYTES:,} bytes. Name one of its files.")
    # T2I-CompBench: color.txt is color_train.txt and color_val.txt, and the last is what one evaluates on.
    lists = [f for f in files if f.stem.endswith("_val")]
    texts: dict[str, list[PromptEntry]] = {}
    for f in lists or files:
        stem = f.stem.removesuffix("_val")
        if stem in texts:  # a.txt and a.TXT
            raise PromptError(f"{path}: expected files of different names, got two called {stem}.")
        texts[stem] = _file(f, prompt_format)
    if all(len(entries) == 1 for entries in texts.values()):
        return [Prompt(stem, entries[0].text) for stem, entries in texts.items()]
    return [
        prompt
        for stem, entries in texts.items()
        for prompt in _numbered([e._replace(category=stem) for e in entries], f"{stem}-")
    ]


def _is_license(path: Path) -> bool:
    return path.name.lower().startswith(LICENSE_NAMES)


# -- files ---------------------------------------------------------------------------------------


def _file(path: Path, prompt_format: str | None) -> list[PromptEntry]:
    form, records = resolve_format(path, prompt_format), read_records(path, prompt_format)
    if form == "json":
        return _document(records[0].value, path)
    if form in ("csv", "tsv"):
        _check_columns(records, path)
    elif form == "txt" and prompt_format is None:
        _warn_of_another_format(records[0].value, path)
    return [_entry(record) for record in records]


def _check_columns(records: Sequence[PromptRecord], path: Path) -> None:
    """Raise PromptError for a table without a column of prompts."""
    names = list(records[0].value) if records else []
    if names and not set(names) & set(TEXT_FIELDS):
        raise PromptError(f"{path}: expected a column {' or '.join(TEXT_FIELDS)}, got {', '.join(names[:20])[:200]}.")


def _warn_of_another_format(first: str, path: Path) -> None:
    """Say so where a text begins as a table or JSON Lines do, for releases before 0.2 read it as such."""
    cells = {form: {cell.strip().lower() for cell in first.split(sign)} for form, sign in (("tsv", "\t"), ("csv", ","))}
    forms = [form for form, names in cells.items() if len(names) > 1 and names & set(TEXT_FIELDS)]
    if first.startswith("{") and any(f'"{name}"' in first.lower() for name in TEXT_FIELDS):
        forms = ["jsonl"]
    for form in forms[:1]:
        warnings.warn(
            f"{path} is read as one prompt a line, as its name says. If it is {form}, say --format {form} "
            f"(in Python prompt_format={form!r}) or rename it.",
            stacklevel=4,
        )


def _document(found: Any, path: Path) -> list[PromptEntry]:
    """The prompts of one JSON document."""
    if isinstance(found, dict) and isinstance(found.get("annotations"), list):
        return _annotations(found["annotations"], path)
    if not isinstance(found, list):
        raise PromptError(
            f"{path}: expected a JSON list of prompts, or COCO's annotations, got {describe(found)}. For one object a "
            f"line, say --format jsonl."
        )
    items = (PromptRecord(f"{path}, item {number}", one) for number, one in enumerate(found, 1))
    entries = [_entry(item) for item in limit_records(items, path)]
    sources = {e.id.rpartition("_")[0] for e in entries}
    if all(sources) and not any(e.category for e in entries):
        return [e._replace(category=e.id.rpartition("_")[0]) for e in entries]  # TIFA: coco_301091, drawbench_0
    return entries


def _annotations(annotations: Sequence[Any], path: Path) -> list[PromptEntry]:
    """COCO's captions: the first of each image, as five prompts for one picture would weigh it five times."""
    first: dict[int, tuple[int, str]] = {}
    for number, one in enumerate(annotations, 1):
        where = f"{path}, annotation {number}"
        fields = one if isinstance(one, Mapping) else {}
        image, own, caption = fields.get("image_id"), fields.get("id"), fields.get("caption")
        if type(image) is not int or type(own) is not int or not isinstance(caption, str):
            raise PromptError(f"{where}: expected image_id and id as whole numbers and a caption, got {describe(one)}.")
        this = (own, _checked(caption, where))
        first[image] = min(first.get(image, this), this)
    return [PromptEntry(caption, "", str(image)) for image, (_, caption) in sorted(first.items())]


def _entry(record: PromptRecord) -> PromptEntry:
    """The prompt of a line, a row or an object. Raises PromptError."""
    where, one = record
    if isinstance(one, str):
        return PromptEntry(_checked(one, where))
    fields = lower_names(one, where) if isinstance(one, Mapping) else {}
    text = next((fields[name] for name in TEXT_FIELDS if fields.get(name) not in (None, "")), None)
    if not isinstance(text, str):
        got = f"the fields {', '.join(fields)}"[:200] if fields and text is None else describe(one)
        raise PromptError(f"{where}: expected a text under {' or '.join(TEXT_FIELDS)}, got {got}.")
    return PromptEntry(_checked(text, where), _label(fields, CATEGORY_FIELDS, where), _label(fields, ID_FIELDS, where))


def lower_names(one: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields by their names in lower case. Raises PromptError where two have one name."""
    fields = {name.strip().lower(): value for name, value in one.items()}
    if len(fields) < len(one):
        raise PromptError(f"{where}: expected fields of different names, got {describe(list(one))}.")
    return fields


def _label(fields: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The first of the fields that is not empty; of a list, its first: VBench's first dimension is the prompt's."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if not isinstance(value, str | int):
            raise PromptError(f"{where}: expected {name} to be a text or a whole number, got {describe(value)}.")
        return _checked(str(value), where)
    return ""


def _checked(text: str, where: str) -> str:
    """The text without spaces around it. Raises PromptError where it is empty, too long or no text."""
    text = text.strip()
    if not text:
        raise PromptError(f"{where}: expected a prompt, got an empty text.")
    if len(text) > MAX_CHARACTERS:
        raise PromptError(f"{where}: expected at most {MAX_CHARACTERS:,} characters, got {len(text):,}.")
    if "\0" in text:
        raise PromptError(f"{where}: expected text, got one with a zero byte: {describe(text)}.")
    return text


__getattr__ = old_names(__name__, {"read": "read_prompts"})
