"""Train every shape of a tiny space once, at every length: `python -m research.architecture.enumerate_space -h`.

Writes `evaluations.json`, from which `replay.py` measures searches without training anything. What is there already is
not trained again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from skipstone.evaluation.models import load_embedded
from skipstone.evaluation.prompts import load_prompts
from skipstone_train.architecture.halving import Job
from skipstone_train.architecture.objectives import Objectives
from skipstone_train.architecture.records import Records
from skipstone_train.architecture.search import ArchitectureSearch, with_checks
from skipstone_train.architecture.settings import SearchSettings
from skipstone_train.architecture.space import read_space

HERE = Path(__file__).parent
SETTINGS = SearchSettings(train_steps=54, rungs=3, batch=8, drawings=128, row_steps=6)
ERROR_ROWS, ROUNDS = 128, 9  # less than a search takes: every shape is measured
OBJECTIVE = "error, milliseconds, megabytes"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.architecture.enumerate_space", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--work", type=Path, required=True, help="folder of rows and checkpoints")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model: Any = load_embedded("pebble-dit")
    texts, checks = ([p.text for p in load_prompts(name)] for name in ("pebble-training", "pebble-tuning"))
    settings, space = with_checks(SETTINGS, texts, checks), read_space(HERE / "tiny_space.yaml")
    search = ArchitectureSearch(model, space, Objectives.parse(OBJECTIVE), settings, texts, checks, given.work)
    given.work.mkdir(parents=True, exist_ok=True)
    records = Records(given.work)
    found = records.begin(search.facts())
    evaluator = replace(search.evaluator(), error_rows=ERROR_ROWS, rounds=ROUNDS)
    done = {(one.candidate, one.rung) for one in found}
    for candidate in space.candidates():
        for rung in range(len(search.halving.rungs)):
            if (candidate, rung) not in done:
                found.append(evaluator.evaluate(Job(candidate, rung)))
                records.add(found[-1])
                print(candidate.name, rung, dict(found[-1].values), found[-1].seconds, flush=True)
    rows = [
        {"choices": dict(one.candidate.choices), "rung": one.rung, "values": dict(one.values), "seconds": one.seconds}
        for one in found
    ]
    told = {"rungs": search.halving.rungs, "settings": vars(settings), "evaluations": rows}
    (HERE / "evaluations.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
