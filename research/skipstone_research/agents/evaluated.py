"""The folder of an evaluation as scores: which of the bench's rows is what, and what lies beside."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skipstone.errors import BenchError, SpecError
from skipstone_bench.store import Record, Store
from skipstone_train.agents.rewards import Utility

from .gates import Learnt, Machine
from .scores import Kind, Row, Scores, of_lines, of_records

FILE = "evaluation.json"
FLOOR, CAP = 10.0, 50.0  # dB of the utility, where no training says otherwise


@dataclass(frozen=True)
class Part:
    """What a row of the bench is to the hypotheses; see `scores.Row`, and for `fee` `scores.of_records`."""

    spec: str
    name: str
    kind: Kind
    price: float = math.nan
    run: str = ""
    fee: float = 0.0


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, read.

    Args:
        scores: Of all rows.
        learnt: What is known of the trainings of the agents.
        machine: Memory of the evaluation.
        about: Model, prompts, machine, date and command, as the bench's header has them.
    """

    scores: Scores
    learnt: tuple[Learnt, ...]
    machine: Machine | None
    about: Mapping[str, Any]


def trainings_named(agents: Sequence[str]) -> dict[str, str]:
    """Agent -> what its training is called: the name of its folder or file, or all of the path where two share it."""
    names = [Path(path).name for path in agents]
    return {path: name if names.count(name) == 1 else path for path, name in zip(agents, names, strict=True)}


def told_of(parts: Sequence[Part], agents: Sequence[str], price: float) -> dict[str, Any]:
    """What an evaluation writes beside its records."""
    named = trainings_named(agents)
    trainings = [{**found, "name": named[path]} for path in agents if (found := training_of(path)) is not None]
    bounds = next((t["bounds"] for t in trainings if "bounds" in t), [FLOOR, CAP])
    return {
        "price": price,
        "bounds": bounds,
        "parts": [{k: v for k, v in asdict(part).items() if v == v} for part in parts],
        "trainings": trainings,
        "memory": asdict(memory(agents)),
    }


def training_of(path: str) -> dict[str, Any] | None:
    """What a training wrote beside its agent, and the bounds of its utility; None of an agent that came without."""
    from skipstone.policies.agent.policy import find
    from skipstone_train.agents.config import load
    from skipstone_train.agents.training import CONFIG, TOLD

    file = find(path)
    if not (file.parent / TOLD).is_file():
        return None
    try:
        found: dict[str, Any] = json.loads((file.parent / TOLD).read_text(encoding="utf-8"))
    except ValueError:
        raise BenchError(f"{file.parent / TOLD} is damaged: delete it, or train the agent again.") from None
    if (file.parent / CONFIG).is_file():
        environment = load(file.parent / CONFIG).environment
        found["bounds"] = [environment.floor, environment.cap]
    return found


def logged_guides(path: str) -> list[Any]:
    """The fixed schedules of the logged trajectories that an agent was trained on; none where these are not at hand."""
    from skipstone.policies.agent.policy import find
    from skipstone_train.agents.config import load
    from skipstone_train.agents.training import CONFIG

    config = find(path).parent / CONFIG
    if not config.is_file():
        return []
    try:
        return list(load(config).environment.logged.guides.values())
    except SpecError:  # the log was on another machine, or is gone
        return []


def memory(agents: Sequence[str]) -> Machine:
    """The most that this process has held, what the machine has, and the largest of the agents' files."""
    import os
    import resource
    import sys

    from skipstone.policies.agent.policy import find

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    largest = max(find(path).stat().st_size for path in agents)
    return Machine(peak, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), largest)


def evaluated(folder: str | Path, oracle: Path | None = None, ceiling: Path | None = None) -> Evaluated:
    """The scores of an evaluation's folder.

    Args:
        folder: The --out of `skipstone evaluate agent`.
        oracle, ceiling: JSON Lines of samples that know more, at the same price: see `scores.of_lines`.

    Raises:
        BenchError: no evaluation there, or a damaged one; what `of_lines` says.
    """
    store = Store.load(Path(folder))
    try:
        told = json.loads((store.folder / FILE).read_text(encoding="utf-8"))
        parts = [Part(**part) for part in told["parts"]]
        utility = Utility(told["price"], *told["bounds"])
        learnt = tuple(_learnt(found) for found in told["trainings"])
        machine = Machine(**told["memory"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BenchError(
            f"{folder} holds no finished evaluation: run skipstone evaluate agent --out {folder} --resume first."
        ) from None
    records: dict[str, list[Record]] = {}
    for record in store.records:
        records.setdefault(record.row, []).append(record)
    rows = [of_records(records[p.spec], p.name, p.kind, p.price, p.run, p.fee) for p in parts if p.spec in records]
    for path, kind in ((oracle, "oracle"), (ceiling, "ceiling")):
        if path is not None:
            rows.append(_beyond(path, kind, utility, rows))
    prompts = {record.sample: record.prompt for own in records.values() for record in own}
    header = store.header
    about = {name: getattr(header, name) for name in ("model", "guidance", "prompts", "machine", "date", "command")}
    return Evaluated(Scores(tuple(rows), prompts, utility), learnt, machine, {**about, "agreement": header.agreement})


def _beyond(path: Path, kind: Any, utility: Utility, rows: Sequence[Row]) -> Row:
    """The oracle's or the ceiling's samples, which must be of the same price and of samples that were evaluated."""
    row = of_lines(path, kind, kind, utility.price)
    known = set(rows[0].samples)
    if not known & set(row.samples):
        raise BenchError(f"{path}: none of its samples was evaluated here. Use the same --prompts, --limit and --seed.")
    for found in row.samples.values():  # what is best for another utility is no bound for this one
        made = found.get("floor", utility.floor), found.get("cap", utility.cap)
        if made != (utility.floor, utility.cap):
            raise BenchError(
                f"{path} was chosen for PSNR clipped to {made[0]:g} to {made[1]:g} dB, and the agents were trained for "
                f"{utility.floor:g} to {utility.cap:g}. Make it again with --floor {utility.floor:g} --cap "
                f"{utility.cap:g}; what was run is kept."
            )
    return row


def _learnt(found: Mapping[str, Any]) -> Learnt:
    figures = {key: found[key] for key in ("name", "first", "best", "random", "fixed", "actions")}
    return Learnt(**figures, learnt=found.get("learnt", True))
