"""What is judged: pictures of several rows, joined by the sample they show, never by the order of files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from skipstone import registry
from skipstone.errors import BenchError, PromptError
from skipstone.evaluation.prompts import Prompt, sample_prompts

from ..store import HEADER, Record, RowInfo, Store

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
NAME_FIELDS, TEXT_FIELDS, CATEGORY_FIELDS = (
    ("name", "file", "file_name", "picture"),
    ("prompt", "caption", "text"),
    ("category", "tag"),
)
MAX_UNASKED = 4  # rows that are compared without being named


@dataclass(frozen=True)
class JudgedSample:
    """One prompt and seed, drawn by every row.

    Args:
        id: Of its own.
        prompt: What was to be drawn; the unit that statistics draw at random is the prompt, with all its samples.
        category: Of the prompt; empty where there is none.
        pictures: Row -> its file.
    """

    id: str
    prompt: str
    category: str
    pictures: Mapping[str, Path]


@dataclass(frozen=True)
class JudgingMaterial:
    """Rows and the samples that all of them have.

    Args:
        source: Where they are from, in words.
        rows: What the rows are called, in the order they were asked for.
        samples: In the order they are judged.
        missing: Samples that not all rows have, which are left out.
        aliases: Other names of rows, such as specs.
    """

    source: str
    rows: tuple[str, ...]
    samples: tuple[JudgedSample, ...]
    missing: int = 0
    aliases: Mapping[str, str] = field(default_factory=dict)

    def subsample(self, limit: int | None, seed: int) -> JudgingMaterial:
        """At most `limit` samples, categories in turn; the same for the same seed. None keeps all, in that order.

        Raises:
            BenchError: a limit below 1.
        """
        if limit is not None and limit < 1:
            raise BenchError(f"Expected at least 1 sample, got a limit of {limit}.")
        known = {s.id: s for s in self.samples}
        # The text that the draw depends on is the id's: the seeds of a prompt are samples of their own.
        order = sample_prompts([Prompt(s.id, s.id, s.category) for s in self.samples], limit or len(known), seed)
        return replace(self, samples=tuple(known[p.id] for p in order))


def load_material(sources: Sequence[Path], rows: Sequence[str] = (), prompts: Path | None = None) -> JudgingMaterial:
    """The pictures of a benchmark's folder, or of two or more folders of pictures and a file with their prompts.

    Args:
        sources: The --out of `skipstone bench`, or folders that hold files of the same names.
        rows: Specs or labels of the benchmark's rows; of folders their names. None of them: all, if they are few.
        prompts: Of folders: a table or JSON Lines with the columns name and prompt, and category if there are any.

    Raises:
        BenchError: no pictures, no sample that all rows have, fewer than two rows, or an unknown one.
        PromptError: a file of prompts that cannot be read, or a picture without a prompt.
    """
    if len(sources) == 1 and not (sources[0] / HEADER).is_file():
        raise BenchError(
            f"{sources[0]} holds no {HEADER}: expected the --out of skipstone bench, or two folders of pictures."
        )
    if len(sources) == 1:
        if prompts is not None:
            raise BenchError("--prompts is for folders of pictures: a benchmark's records hold their prompts.")
        return _load_benchmark(sources[0], rows)
    if not sources:
        raise BenchError("Expected a benchmark's folder, or two folders of pictures, got none.")
    if prompts is None:
        raise BenchError("Folders of pictures need --prompts: a table with the columns name and prompt.")
    return _load_folders(sources, rows, prompts)


def _load_benchmark(folder: Path, asked: Sequence[str]) -> JudgingMaterial:
    store = Store.load(folder)
    kept = [r for r in store.records if r.picture and (folder / r.picture).is_file()]
    if not kept:
        raise BenchError(f"{folder} keeps no pictures (its records do): run skipstone bench with another --out.")
    held = {r.row for r in kept}
    infos = [row for row in store.header.rows if row.spec in held]
    names = _names(infos)
    chosen = _choose_rows(names, asked, f"{folder} has pictures of")
    by_row: dict[str, dict[str, Record]] = {spec: {} for spec in chosen}
    for record in kept:
        if record.row in by_row:
            by_row[record.row][record.sample] = record
    everywhere, missing = _shared_ids(list(by_row.values()), str(folder))
    first = by_row[chosen[0]]
    samples = tuple(
        JudgedSample(
            sample,
            first[sample].prompt,
            first[sample].category,
            {names[spec]: folder / by_row[spec][sample].picture for spec in chosen},
        )
        for sample in everywhere
    )
    return JudgingMaterial(str(folder), tuple(names[spec] for spec in chosen), samples, missing, names)


def _names(infos: Sequence[RowInfo]) -> dict[str, str]:
    """Spec -> label, or the spec itself where several rows share a label."""
    labels = [row.label for row in infos]
    return {row.spec: row.label if labels.count(row.label) == 1 else row.spec for row in infos}


def _choose_rows(names: Mapping[str, str], asked: Sequence[str], about: str) -> list[str]:
    """Specs of the rows that were asked for, in that order."""
    known = list(names.values())
    told = f"{about}: {'; '.join(known)}."
    if not asked:
        if len(known) > MAX_UNASKED:
            raise BenchError(f"Name the rows to compare with --row, twice or more: {told}")
        found = list(names)
    else:
        specs = {**{label: spec for spec, label in names.items()}, **{spec: spec for spec in names}}
        for name in asked:
            if name not in specs:
                raise BenchError(f"No pictures of a row {name!r}.{registry.suggest_spelling(name, known)} {told}")
        found = list(dict.fromkeys(specs[name] for name in asked))
    if len(found) < 2:
        raise BenchError(f"Expected at least two rows to compare, got {len(found)}. {told}")
    return found


def _shared_ids(rows: Sequence[Mapping[str, object]], where: str) -> tuple[list[str], int]:
    """Sorted ids that all rows have, and how many only some have."""
    some: set[str] = set().union(*rows)
    every = some.intersection(*rows)
    if not every:
        raise BenchError(f"{where}: expected samples that all rows have, got {[len(r) for r in rows]} and none shared.")
    return sorted(every), len(some) - len(every)


# -- Folders of pictures ----------------------------------------------------------------------------


def _load_folders(folders: Sequence[Path], asked: Sequence[str], prompts: Path) -> JudgingMaterial:
    names = {str(f): f.name for f in folders}
    if len(set(names.values())) < len(folders):
        names = {str(f): str(f) for f in folders}
    chosen = _choose_rows(names, asked, "The folders are")
    held = []
    for folder in map(Path, chosen):
        files = {p.name: p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES} if folder.is_dir() else {}
        if not files:
            raise BenchError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).")
        held.append(files)
    everywhere, missing = _shared_ids(held, " and ".join(chosen))
    said = _prompts(prompts)
    samples = []
    for name in everywhere:
        prompt = said.get(name) or said.get(Path(name).stem)
        if prompt is None:
            raise PromptError(
                f"{prompts} says no prompt for the picture {name}: expected a line whose name is {name} or "
                f"{Path(name).stem}. Prompts are found by name, never by their order."
            )
        pictures = {names[folder]: files[name] for folder, files in zip(chosen, held, strict=True)}
        samples.append(JudgedSample(name, prompt.text, prompt.category, pictures))
    return JudgingMaterial(" and ".join(chosen), tuple(names[f] for f in chosen), tuple(samples), missing, names)


def _prompts(path: Path) -> dict[str, Prompt]:
    """Name -> prompt."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise PromptError(f"{path} cannot be read: {getattr(e, 'strerror', None) or 'it is no text'}.") from None
    found: dict[str, Prompt] = {}
    for place, line in enumerate(_lines(path, text), 1):
        told = {str(k).strip().lower(): str(v) for k, v in line.items() if v is not None}
        name, prompt = _field(told, NAME_FIELDS), _field(told, TEXT_FIELDS)
        if name is None or prompt is None:
            raise PromptError(f"{path}, entry {place}: expected name and prompt, got {', '.join(told) or 'nothing'}.")
        if name in found:
            raise PromptError(f"{path}, entry {place}: expected each name once, got {name!r} again.")
        found[name] = Prompt(name, prompt, _field(told, CATEGORY_FIELDS) or "")
    return found


def _lines(path: Path, text: str) -> list[Mapping[str, object]]:
    if not text.lstrip().startswith("{"):
        return list(
            csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in text.partition("\n")[0] else ",")
        )
    lines: list[Mapping[str, object]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            if not isinstance(found, dict):
                raise PromptError(f"{path}, line {number}: expected a JSON object with name and prompt.")
            lines.append(found)
    return lines


def _field(told: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((told[name].strip() for name in names if name in told), None)
