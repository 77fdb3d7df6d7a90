"""Runs on disk and in words: a trace is all that happened, enough to replay it and to explain it."""

from __future__ import annotations

import inspect
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import __version__, registry
from ..errors import SpecError, TraceError
from ..numerics.nonfinite import read_nonfinite, spell_nonfinite
from .contracts import Attempt, Cached, Chain, Draft, Evaluate, Finish, Forecast, Full, Plan, Policy, Refine, Run

FORMAT = 1
EVALUATION_CLASSES: dict[str, type] = {
    "full": Full,
    "cached": Cached,
    "forecast": Forecast,
    "finish": Finish,
    "refine": Refine,
    "draft": Draft,
}
# Numbers that policies and the engine note in a plan's memo.
MEMO_MEANINGS = {
    "expected_error": "The error that leaving this call out is expected to make, by the calls before.",
    "early_stop": "The step at which the picture had settled.",
    "action": "The number of the agent's action.",
    "stop": "Calls that the agent still makes until the end, once it has decided to stop.",
    "gate": "1 where the unconditional branch is forecast.",
    "region": "Share of the picture that was refined.",
    "map_kept": "1 where the map of the region came from a call made before.",
}
EVALUATION_NAMES = {kind: word for word, kind in EVALUATION_CLASSES.items()}


@dataclass(frozen=True)
class Trace:
    """A run and what its maker noted beside it: prompt, seed, policy, solver ..."""

    run: Run
    meta: Mapping[str, Any] = field(default_factory=dict)


# -- Writing -------------------------------------------------------------------------------------


def to_json(run: Run, **meta: Any) -> str:
    """The trace as JSON text; `from_json` inverts it exactly. `meta` is anything that JSON can hold."""
    document = {"format": FORMAT, "skipstone": __version__, "meta": meta, "run": _to_jsonable(run)}
    try:
        return json.dumps(document, allow_nan=False, indent=1)
    except (TypeError, ValueError) as e:
        raise TraceError(f"Expected a trace's notes to be plain JSON values, got {meta!r} ({e}).") from None


def save(path: str | os.PathLike[str], run: Run, **meta: Any) -> None:
    """Write a trace; the file appears complete or not at all. Raises TraceError where it cannot be written."""
    target, text = Path(path), to_json(run, **meta)
    try:
        handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(scratch, target)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError as e:
        raise TraceError(f"Cannot write the trace {target}: {e.strerror}.") from None


def _to_jsonable(value: Any) -> Any:
    """Dataclasses as objects, evaluations tagged by kind, sets sorted, non-finite numbers as texts."""
    if type(value) in EVALUATION_NAMES:
        return {
            "kind": EVALUATION_NAMES[type(value)],
            **{f.name: _to_jsonable(getattr(value, f.name)) for f in fields(value)},
        }
    if isinstance(value, Run | Attempt | Plan):
        return {f.name: _to_jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {k: _to_jsonable(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [_to_jsonable(v) for v in value]
    return sorted(value) if isinstance(value, frozenset) else spell_nonfinite(value)


# -- Reading -------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> Trace:
    """Read a trace. Raises TraceError where the file cannot be read or is not a whole trace."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "it is not a text file"
        raise TraceError(f"Cannot read the trace {path}: {reason}.") from None
    try:
        return from_json(text)
    except TraceError as e:
        raise TraceError(f"{path}: {e}") from None


def from_json(text: str) -> Trace:
    """The trace that `to_json` wrote. Raises TraceError on anything else, saying where it differs."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise TraceError("Expected a trace in JSON, got a text that ends early or is something else.") from None
    if not isinstance(document, dict) or "format" not in document:
        raise TraceError("Expected a Skipstone trace, got JSON without a `format`.")
    if document["format"] != FORMAT:
        raise TraceError(
            f"Expected a trace of format {FORMAT}, got {document['format']!r}: "
            f"read it with the version that wrote it ({document.get('skipstone', 'unknown')})."
        )
    meta = document.get("meta")
    if not isinstance(meta, dict):
        raise TraceError(f"Expected `meta` to be an object, got {meta!r}.")
    run = document.get("run")
    if isinstance(run, dict):
        run = {"prompt": [], "text": "", **run}  # traces had none before policies looked at them
    return Trace(_parse_run(_check_fields(run, Run, "run")), meta)


def _check_fields(value: Any, cls: type, where: str) -> dict[str, Any]:
    """The value, an object with exactly the fields of a class."""
    names = {f.name for f in fields(cls)}
    if not isinstance(value, dict):
        raise TraceError(f"Expected `{where}` to be an object, got {value!r}.")
    if value.keys() - {"kind"} != names:
        wrong = sorted((value.keys() - {"kind"}) ^ names)
        raise TraceError(f"Expected `{where}` to have the fields {', '.join(sorted(names))}; {wrong} differ.")
    return value


def _number(value: Any, where: str) -> float:
    value = read_nonfinite(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TraceError(f"Expected `{where}` to be a number, got {value!r}.")
    return value


def _integer(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TraceError(f"Expected `{where}` to be a whole number, got {value!r}.")
    return value


def _list(value: Any, where: str, of: type | None = None) -> list[Any]:
    if not isinstance(value, list) or (of is not None and not all(isinstance(v, of) for v in value)):
        raise TraceError(f"Expected `{where}` to be a list, got {value!r}.")
    return value


def _numbers(value: Any, where: str) -> dict[str, float]:
    if not isinstance(value, dict):
        raise TraceError(f"Expected `{where}` to be an object, got {value!r}.")
    return {k: _number(v, f"{where}.{k}") for k, v in value.items()}


def _parse_run(d: dict[str, Any]) -> Run:
    grid, clocks = (
        tuple(_number(v, f"run.{key}[{i}]") for i, v in enumerate(_list(d[key], f"run.{key}")))
        for key in ("grid", "clocks")
    )
    if len(grid) < 2 or len(grid) != len(clocks):
        raise TraceError(f"Expected a grid and as many clocks, at least two, got {len(grid)} and {len(clocks)}.")
    past = tuple(_parse_attempt(a, f"run.past[{i}]") for i, a in enumerate(_list(d["past"], "run.past")))
    pending = None if d["pending"] is None else _parse_attempt(d["pending"], "run.pending")
    stages, branches = (_integer(d[key], f"run.{key}") for key in ("stages", "branches"))
    t, t_end = (_number(d[key], f"run.{key}") for key in ("t", "t_end"))
    prompt = tuple(_number(v, f"run.prompt[{i}]") for i, v in enumerate(_list(d["prompt"], "run.prompt")))
    if not isinstance(d["text"], str):
        raise TraceError(f"Expected `run.text` to be a text, got {d['text']!r}.")
    return Run(t, t_end, grid, clocks, stages, branches, past, pending, prompt, d["text"])


def _parse_attempt(value: Any, where: str) -> Attempt:
    d = _check_fields(value, Attempt, where)
    t, t_next, cost = (_number(d[key], f"{where}.{key}") for key in ("t", "t_next", "cost"))
    if d["accepted"] not in (None, True, False):
        raise TraceError(f"Expected `{where}.accepted` to be true, false or null, got {d['accepted']!r}.")
    plan = _parse_plan(d["plan"], f"{where}.plan")
    return Attempt(t, t_next, plan, cost, _numbers(d["signals"], f"{where}.signals"), d["accepted"])


def _parse_plan(value: Any, where: str) -> Plan:
    d = _check_fields(value, Plan, where)
    if not isinstance(d["accept"], bool):
        raise TraceError(f"Expected `{where}.accept` to be true or false, got {d['accept']!r}.")
    why = tuple(_list(d["why"], f"{where}.why", str))
    evaluate, t_next = _parse_evaluation(d["evaluate"], f"{where}.evaluate"), _number(d["t_next"], f"{where}.t_next")
    return Plan(evaluate, t_next, d["accept"], why, _numbers(d["memo"], f"{where}.memo"))


def _parse_evaluation(value: Any, where: str) -> Evaluate:
    kind = EVALUATION_CLASSES.get(str(value.get("kind"))) if isinstance(value, dict) else None
    if kind is None:
        raise TraceError(f"Expected `{where}` to be of a kind among {', '.join(EVALUATION_CLASSES)}, got {value!r}.")
    d = {k: v for k, v in _check_fields(value, kind, where).items() if k != "kind"}
    for key in ("order", "steps", "edge"):
        if key in d:
            _integer(d[key], f"{where}.{key}")
    for key in ("back", "threshold"):
        if key in d:
            d[key] = _number(d[key], f"{where}.{key}")
    if not isinstance(d.get("below", False), bool):
        raise TraceError(f"Expected `{where}.below` to be true or false, got {d['below']!r}.")
    if not all(isinstance(d[key], str) for key in ("of", "clock") if key in d):
        raise TraceError(f"Expected `{where}` to name its prediction and clock, got {value!r}.")
    if "sites" in d:
        d["sites"] = frozenset(_list(d["sites"], f"{where}.sites", str))
    return kind(**d)  # type: ignore[no-any-return]


# -- In words ------------------------------------------------------------------------------------


def letters(run: Run) -> str:
    """One letter an attempt: C call, c cached sites, . forecast, F finish, R refine, S student; x if rejected."""

    def letter(a: Attempt) -> str:
        kinds = {Cached: "c", Forecast: ".", Finish: "F", Refine: "R", Draft: "S"}
        return kinds.get(type(a.plan.evaluate), "C") + ("x" if a.accepted is False else "")

    return "".join(map(letter, run.display_attempts))


def explain(run: Run, full: float | None = None) -> str:
    """A readable account of a run: what it cost, who saved it, each step with its reasons, what the numbers mean.

    Args:
        run: The run.
        full: Calls of the bare run, where steps differ in theirs; as many as the grid has steps and stages by default.
    """
    steps = [_format_attempt(i, a) for i, a in enumerate(run.display_attempts)]
    return "\n".join([*_summary(run, full), "", *steps, *_describe_numbers(run)])


def _summary(run: Run, full: float | None) -> list[str]:
    bare = float((len(run.grid) - 1) * run.stages) if full is None else full
    saved = f"{1 - run.cost / bare:.0%} saved" if run.cost <= bare else f"{run.cost / bare - 1:.0%} more"
    lines = [f"{run.cost:g} calls, where the bare run makes {bare:g}: {saved}."]
    steps: dict[str, int] = {}
    for a in run.display_attempts:
        for name in a.plan.why:
            steps[name] = steps.get(name, 0) + 1
    lines += [f"{name} amended {count} of {len(run.display_attempts)} steps." for name, count in steps.items()]
    rejected = sum(a.accepted is False for a in run.display_attempts)
    return lines + ([f"{rejected} steps were rejected and done again."] if rejected else [])


def _format_attempt(index: int, a: Attempt) -> str:
    numbers = {**a.signals, **a.plan.memo}
    parts = [f"{index:3d}  t {a.t:.3f} -> {a.t_next:.3f}  {_describe_evaluation(a.plan.evaluate):28s} {a.cost:4.2g}"]
    parts += ["rejected"] if a.accepted is False else []
    parts += [f"by {', '.join(a.plan.why)}"] if a.plan.why else []
    parts += [", ".join(f"{name} {value:.3g}" for name, value in numbers.items())] if numbers else []
    return "  ".join(parts)


def _describe_numbers(run: Run) -> list[str]:
    """A line for each number that the steps show: its name and what it means."""
    shown = [name for a in run.display_attempts for name in (*a.signals, *a.plan.memo)]
    names = dict.fromkeys(re.sub(r"\[\d+\]$", "", name) for name in shown)
    lines = [f"  {name}: {meaning}" for name in names if (meaning := _meaning(name))]
    return ["", "What the numbers mean:", *lines] if lines else []


def _meaning(name: str) -> str:
    """What a number of a trace means, empty where that is not known: of a plug-in that is not installed."""
    if name in MEMO_MEANINGS:
        return MEMO_MEANINGS[name]
    try:
        return str(registry.parse("signal", name).meaning)
    except SpecError:
        return ""


def _describe_evaluation(evaluate: Evaluate) -> str:
    match evaluate:
        case Cached(sites, order):
            return f"call, {'+'.join(sorted(sites))} forecast ({order})"
        case Forecast(order, of, clock):
            return f"forecast {of}, order {order} on {clock}"
        case Finish(order):
            return f"call, finish of order {order}"
        case Refine(steps):
            return f"call, region refined in {steps}"
        case Draft(steps):
            return f"student, {steps} steps"
    return "call"


def cite(policy: Policy) -> str:
    """The references of every policy in a chain, one a line."""
    lines = []
    for part in policy.parts if isinstance(policy, Chain) else (policy,):
        found = re.search(r"References:\s*(.+?)(?:\n\s*\n|\Z)", inspect.cleandoc(type(part).__doc__ or ""), re.DOTALL)
        line = f"{part.name}: {' '.join(found.group(1).split())}" if found else f"{part.name}: no reference given."
        lines += [] if line in lines else [line]
    return "\n".join(lines)
