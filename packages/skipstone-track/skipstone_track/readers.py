"""The folders that commands write, read as records; each kind has one file that no other has."""

from __future__ import annotations

import csv
import hashlib
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from skipstone.errors import OutputError
from skipstone.evaluation.json_lines import read_lines
from skipstone.json_files import JsonReader
from skipstone.policies.seen_prompts import SEEN_FILE

from .record import ChildRun, PromptVersion, RunRecord, flatten

READER = JsonReader(OutputError, "Run the command that wrote it again.")
TAGS = ("version", "model", "machine", "date", "command")
STEP_NAMES = ("step", "steps")


def read_folder(folder: Path) -> RunRecord:
    """The record of a folder.

    Raises:
        OutputError: no folder of a command that is logged, or a damaged one.
    """
    for marker, reader in READERS.items():
        if (folder / marker).is_file():
            return reader(folder)
    raise OutputError(
        f"{folder}: expected a pipeline, or the --out of bench, calibrate, tune, distill, search or train agent, a "
        f"folder with one of {', '.join(READERS)}."
    )


def _document(path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = READER.convert(Mapping[str, Any], READER.read(path), str(path))
    return found


def _tags(document: Mapping[str, Any]) -> dict[str, str]:
    fingerprint = flatten(_mapping(document.get("fingerprint")), "fingerprint")
    return {name: str(document[name]) for name in TAGS if document.get(name)} | {
        name: str(value) for name, value in fingerprint.items()
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a mapping; MLflow's database takes no others."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


# -- bench ------------------------------------------------------------------------------------------


def read_bench(folder: Path) -> RunRecord:
    """A benchmark: a child for each row, with its mean calls and the median and p10 of every metric."""
    header = _document(folder / "bench.json")
    samples: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in read_lines(folder / "samples.jsonl"):
        row = samples[str(record.get("row"))]
        for name, value in _numbers({"calls": record.get("calls"), **_mapping(record.get("values"))}).items():
            row[name][str(record.get("sample"))] = value
    rows = [_mapping(row) for row in header.get("rows", ())]
    prompts, fingerprint = _mapping(header.get("prompts")), _mapping(header.get("fingerprint"))
    versions = [("prompts", "evaluation"), ("tuning prompts", "tuning")]
    return RunRecord(
        "bench",
        folder,
        params=flatten({**_mapping(header.get("options")), "guidance": header.get("guidance"), "prompts": prompts}),
        metrics=_numbers({"rows": len(samples), "samples": sum(len(row["calls"]) for row in samples.values())}),
        tags=_tags(header),
        prompts=[
            PromptVersion(str(prompts.get("set", "prompts")), str(fingerprint[key]), context)
            for key, context in versions
            if key in fingerprint
        ],
        children=[_bench_row(row, samples.get(str(row.get("spec")), {})) for row in rows],
        samples=samples,
    )


def _bench_row(row: Mapping[str, Any], samples: Mapping[str, Mapping[str, float]]) -> ChildRun:
    metrics = _numbers(_mapping(row.get("values")))
    for name, values in samples.items():
        numbers = sorted(values.values())
        metrics[f"{name}.median"] = statistics.median(numbers)
        metrics[f"{name}.mean"] = statistics.fmean(numbers)
        metrics[f"{name}.p10"] = numbers[len(numbers) // 10]
    keep = ("spec", "group", "family", "knob", "steps", "note", "refusal")
    return ChildRun(str(row.get("label") or row.get("spec")), {k: row[k] for k in keep if row.get(k)}, metrics)


# -- calibrate and tune -----------------------------------------------------------------------------


def read_policy(folder: Path) -> RunRecord:
    """A calibrated policy: a child for each setting that was tested."""
    document = _document(folder / "policy.json")
    certificate = _mapping(document.get("certificate"))
    if not certificate:
        raise OutputError(f"{folder}: policy.json has no certificate: expected the --out of skipstone calibrate.")
    prompts = _mapping(certificate.get("prompts"))
    points = [_mapping(point) for point in certificate.get("points", ())]
    chosen = next((p for p in points if f"{p.get('setting')}" == str(document.get("policy")).split(" @ ")[0]), {})
    params = {k: certificate.get(k) for k in ("target", "promise", "confidence", "method", "reference", "seed")}
    tags = _tags(certificate) | {"fingerprint.weights": str(_mapping(certificate.get("identity")).get("weights", ""))}
    return RunRecord(
        "calibrate",
        folder,
        params={"policy": document.get("policy"), **params, **flatten({"source": certificate.get("source") or {}})},
        metrics=_numbers({k: chosen.get(k) for k in ("calls", "value", "low", "high")}),
        tags=tags | {f"version.{k}": str(v) for k, v in _mapping(certificate.get("versions")).items()},
        prompts=[PromptVersion(str(prompts.get("source")), str(prompts.get("sha256")), "calibration")],
        children=[_point(point) for point in points],
    )


def _point(point: Mapping[str, Any]) -> ChildRun:
    params = {k: v for k, v in point.items() if isinstance(v, str | bool)}
    return ChildRun(f"{point.get('setting')} @ {point.get('way')}", params, _numbers(point))


TUNING = ("paths.json", "slopes.json", "tuned.json")  # of grids, of slopes, of joint searches


def read_tuning(folder: Path) -> RunRecord:
    """A search of `tune`: a child for each row of its table; of joint searches, their best so far by calls charged."""
    document = _document(next(folder / name for name in TUNING if (folder / name).is_file()))
    fingerprint = _mapping(document.get("fingerprint"))
    found = [_mapping(one) for one in document.get("found", ())]
    rows = [_mapping(row) for one in (document, *found) for row in one.get("rows", ())]
    return RunRecord(
        "tune",
        folder,
        params={k: document.get(k) for k in ("guidance", "prompts", "check", "samples", "checked")},
        metrics=_numbers(_mapping(_mapping(document.get("references")).get("agreement"))),
        series={name: points for one in found for name, points in _best_so_far(one)},
        tags=_tags(document),
        prompts=[
            PromptVersion(str(document.get("prompts")), str(fingerprint[key]), context)
            for key, context in (("tuning prompts", "tuning"), ("prompts", "evaluation"))
            if key in fingerprint
        ],
        children=[
            ChildRun(
                f"{row.get('label')}, {row.get('calls')} calls",
                {"spec": row.get("spec"), "group": row.get("group")},
                _numbers({"budget": row.get("calls"), "calls": row.get("spent")})
                | {f"psnr.{k}": v for k, v in _numbers(_mapping(row.get("psnr"))).items()},
            )
            for row in rows
        ],
    )


def _best_so_far(found: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """The best PSNR on the tuning samples of each search, by the calls that it was charged."""
    for search in map(_mapping, found.get("searches", ())):
        trials = [_numbers(_mapping(trial)) for trial in search.get("trials", ())]
        points = [(round(trial["charged"]), trial["best"]) for trial in trials if {"charged", "best"} <= trial.keys()]
        yield f"best.{search.get('search')}.{found.get('calls')} calls", points


# -- distill and train ------------------------------------------------------------------------------


def read_student(folder: Path) -> RunRecord:
    """A student: the loss of each step, and the settings of its training."""
    card = _document(folder / "student.json")
    steps = list(read_lines(folder / "log.jsonl"))
    tags = {
        "version": card.get("version"),
        "model": card.get("teacher"),
        "fingerprint.weights": card.get("fingerprint"),
    }
    return RunRecord(
        "distill",
        folder,
        params=flatten(_mapping(card.get("settings"))) | {k: card.get(k) for k in ("method", "steps", "weights")},
        metrics=_numbers(_mapping(card.get("training"))),
        series=_series(steps),
        tags={name: str(value) for name, value in tags.items() if value},
        prompts=_seen_version(folder),
    )


def read_search(folder: Path) -> RunRecord:
    """A search of smaller networks: a child for each network of the front."""
    document = _document(folder / "search.json")
    front = [_mapping(child) for child in document.get("front", ())]
    return RunRecord(
        "search",
        folder,
        params=flatten({name: document.get(name) for name in ("model", "objective", "space", "settings")}),
        metrics={"front": float(len(front))},
        tags=_tags(document),
        prompts=_seen_version(folder),
        children=[
            ChildRun(
                Path(str(child.get("folder"))).name,
                dict(_mapping(child.get("choices"))),
                _numbers(_mapping(child.get("values"))) | _numbers(_mapping(child.get("details"))),
            )
            for child in front
        ],
    )


def _seen_version(folder: Path) -> list[PromptVersion]:
    """The version of the prompts that something was trained on, where its folder says which."""
    seen = folder / SEEN_FILE
    if not seen.is_file():
        return []
    return [PromptVersion(SEEN_FILE, hashlib.sha256(seen.read_bytes()).hexdigest(), "training")]


def read_agent(folder: Path) -> RunRecord:
    """An agent: the learning curve, and what the training ended with."""
    document = _document(folder / "training.json")
    with (folder / "curve.csv").open(encoding="utf-8", newline="") as stream:
        lines = [{name: _number(text) for name, text in line.items()} for line in csv.DictReader(stream)]
    metrics = _numbers(flatten(document))
    return RunRecord(
        "train",
        folder,
        params={k: v for k, v in flatten(document).items() if k not in metrics},
        metrics=metrics,
        series=_series(lines),
        tags=_tags(document),
    )


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _series(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Lines of a log by name; the step is the log's own, or the number of the line."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for number, line in enumerate(lines):
        step = next((int(line[name]) for name in STEP_NAMES if isinstance(line.get(name), int | float)), number)
        for name, value in _numbers(line).items():
            if name not in STEP_NAMES:
                found[name].append((step, value))
    return dict(found)


def read_model(folder: Path) -> RunRecord:
    """A pipeline that diffusers saved: its class, and the versions that it was saved with."""
    index = _document(folder / "model_index.json")
    parts = {k: "/".join(map(str, v)) for k, v in index.items() if isinstance(v, list)}
    return RunRecord("model", folder, params={k: v for k, v in index.items() if isinstance(v, str)} | parts)


def read_step(folder: Path) -> RunRecord:
    """A step of a loop: what it depended on, what it found, and the prompts that it used."""
    document = _document(folder / "step.json")
    prompts = [one for one in document.get("prompts", ()) if isinstance(one, list) and len(one) == 3]
    said = {"lines": "\n".join(map(str, document.get("lines", ()))), "key": document.get("key")}
    commands = {f"command.{k}": one for k, one in enumerate(document.get("commands", ()))}
    return RunRecord(
        f"loop {document.get('step')}",
        folder,
        params={f"input.{name}": value for name, value in _mapping(document.get("inputs")).items()},
        metrics=_numbers({**_mapping(document.get("figures")), "seconds": document.get("seconds")}),
        tags={name: str(value) for name, value in {**said, **commands, "date": document.get("date")}.items() if value},
        prompts=[PromptVersion(*map(str, one)) for one in prompts],
    )


READERS: Mapping[str, Callable[[Path], RunRecord]] = {
    "step.json": read_step,
    "bench.json": read_bench,
    **dict.fromkeys(TUNING, read_tuning),
    "student.json": read_student,
    "search.json": read_search,
    "training.json": read_agent,
    "policy.json": read_policy,
    "model_index.json": read_model,
}
