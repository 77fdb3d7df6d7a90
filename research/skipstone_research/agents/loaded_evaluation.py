"""The folder of an evaluation as scores: the kinds of the bench's rows, and the trainings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skipstone.errors import BenchError, SpecError
from skipstone.evaluation.utility import Utility
from skipstone_bench.store import Record, Store

from .gates import MemoryUsage, TrainingSummary
from .scores import RowKind, ScoreRow, Scores, row_from_jsonl, row_from_records

EVALUATION_FILE = "evaluation.json"
UNTRACKED = ["tracking=none"]  # a training may have used a tracker that is no longer supported
FLOOR, CAP = 10.0, 50.0  # dB of the utility, where no training says otherwise


@dataclass(frozen=True)
class EvaluationRow:
    """What a row of the bench is to the hypotheses; see `ScoreRow`, and for `fee` `row_from_records`."""

    spec: str
    name: str
    kind: RowKind
    price: float = math.nan
    run: str = ""
    fee: float = 0.0


@dataclass(frozen=True)
class LoadedEvaluation:
    """An evaluation, read.

    Args:
        scores: Of all rows.
        learnt: Summaries of the trainings of the agents.
        machine: Memory of the evaluation.
        about: Model, prompts, machine, date and command, as the bench's header has them.
    """

    scores: Scores
    learnt: tuple[TrainingSummary, ...]
    machine: MemoryUsage | None
    about: Mapping[str, Any]


def name_trainings(agents: Sequence[str]) -> dict[str, str]:
    """Agent -> what its training is called: the name of its folder or file, or all of the path where two share it."""
    names = [Path(path).name for path in agents]
    return {path: name if names.count(name) == 1 else path for path, name in zip(agents, names, strict=True)}


def evaluation_metadata(parts: Sequence[EvaluationRow], agents: Sequence[str], price: float) -> dict[str, Any]:
    """What an evaluation writes beside its records."""
    named = name_trainings(agents)
    trainings = [{**found, "name": named[path]} for path in agents if (found := read_training(path)) is not None]
    bounds = next((t["bounds"] for t in trainings if "bounds" in t), [FLOOR, CAP])
    return {
        "price": price,
        "bounds": bounds,
        "parts": [{k: v for k, v in asdict(part).items() if v == v} for part in parts],
        "trainings": trainings,
        "memory": asdict(measure_memory(agents)),
    }


def read_training(path: str) -> dict[str, Any] | None:
    """What a training wrote beside its agent, and the bounds of its utility; None of an agent that came without."""
    from skipstone.policies.agent.policy import find_agent
    from skipstone_train.agents.config import load_config
    from skipstone_train.agents.training import CONFIG_FILE, RESULT_FILE

    file = find_agent(path)
    if not (file.parent / RESULT_FILE).is_file():
        return None
    try:
        found: dict[str, Any] = json.loads((file.parent / RESULT_FILE).read_text(encoding="utf-8"))
    except ValueError:
        raise BenchError(f"{file.parent / RESULT_FILE} is damaged: delete it, or train the agent again.") from None
    if (file.parent / CONFIG_FILE).is_file():
        environment = load_config(file.parent / CONFIG_FILE, UNTRACKED).environment
        found["bounds"] = [environment.floor, environment.cap]
    return found


def logged_base_schedules(path: str) -> list[Any]:
    """The fixed schedules of the logged trajectories that an agent was trained on; none where these are not at hand."""
    from skipstone.policies.agent.policy import find_agent
    from skipstone_train.agents.config import load_config
    from skipstone_train.agents.training import CONFIG_FILE

    config = find_agent(path).parent / CONFIG_FILE
    if not config.is_file():
        return []
    try:
        return list(load_config(config, UNTRACKED).environment.trajectory_log.base_schedules.values())
    except SpecError:  # the log was on another machine, or is gone
        return []


def measure_memory(agents: Sequence[str]) -> MemoryUsage:
    """The most that this process has held, what the machine has, and the largest of the agents' files."""
    import os
    import resource
    import sys

    from skipstone.policies.agent.policy import find_agent

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    largest = max(find_agent(path).stat().st_size for path in agents)
    return MemoryUsage(peak, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), largest)


def load_evaluation(folder: str | Path, oracle: Path | None = None, ceiling: Path | None = None) -> LoadedEvaluation:
    """The scores of an evaluation's folder.

    Args:
        folder: The --out of `skipstone evaluate agent`.
        oracle, ceiling: JSON Lines of samples of an oracle or a ceiling, at the same price: see `row_from_jsonl`.

    Raises:
        BenchError: no evaluation there, or a damaged one; what `row_from_jsonl` says.
    """
    store = Store.load(Path(folder))
    try:
        metadata = json.loads((store.folder / EVALUATION_FILE).read_text(encoding="utf-8"))
        parts = [EvaluationRow(**part) for part in metadata["parts"]]
        utility = Utility(metadata["price"], *metadata["bounds"])
        learnt = tuple(_parse_training(found) for found in metadata["trainings"])
        machine = MemoryUsage(**metadata["memory"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BenchError(
            f"{folder} holds no finished evaluation: run skipstone evaluate agent --out {folder} --resume first."
        ) from None
    records: dict[str, list[Record]] = {}
    for record in store.records:
        records.setdefault(record.row, []).append(record)
    rows = [
        row_from_records(records[p.spec], p.name, p.kind, p.price, p.run, p.fee) for p in parts if p.spec in records
    ]
    for path, kind in ((oracle, "oracle"), (ceiling, "ceiling")):
        if path is not None:
            rows.append(_load_bound_row(path, kind, utility, rows))
    prompts = {record.sample: record.prompt for own in records.values() for record in own}
    header = store.header
    about = {name: getattr(header, name) for name in ("model", "guidance", "prompts", "machine", "date", "command")}
    return LoadedEvaluation(
        Scores(tuple(rows), prompts, utility), learnt, machine, {**about, "agreement": header.agreement}
    )


def _load_bound_row(path: Path, kind: Any, utility: Utility, rows: Sequence[ScoreRow]) -> ScoreRow:
    """The oracle's or the ceiling's samples, which must be of the same price and of samples that were evaluated."""
    row = row_from_jsonl(path, kind, kind, utility.price)
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


def _parse_training(found: Mapping[str, Any]) -> TrainingSummary:
    figures = {key: found[key] for key in ("name", "first", "best", "random", "fixed", "actions")}
    return TrainingSummary(**figures, learnt=found.get("learnt", True))
