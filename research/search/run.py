"""The searches of `skipstone tune --search` at equal calls: `python -m research.search.run --runs runs/search`.

Pebble and Pebble-DiT at 8 and 12 calls. The dynamic programming finds its grids on 12 prompts of `pebble-tuning`; each
search then has as many calls there, under three seeds; what each found runs on 16 prompts of `pebble`, which are
others. Writes what was found to `results.json`; `table.py` makes the table and the picture of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from skipstone.cli.progress import progress_bar
from skipstone.evaluation.engine_subject import EngineSubject
from skipstone.evaluation.fingerprint import describe_machine
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.references import EvaluationSample
from skipstone.tuning.joint import DP, JointResult, JointSearch, JointSettings, SearchOutcome
from skipstone.tuning.run_cache import RunCache
from skipstone.tuning.search import TuningRow, TuningSettings
from skipstone.tuning.searches import cem_search, count_states, random_search
from skipstone_train.search.optuna_search import nsga2, tpe
from skipstone_train.search.ppo_search import ppo

HERE = Path(__file__).parent
MODELS = ("pebble", "pebble-dit")
CALLS, SEEDS = (8, 12), (0, 1, 2)
TUNING, CHECK, FIRST_CHECK_SEED = 12, 16, 10_000
FINE, BATCH = 100, 16
CANDIDATES = 10  # of the calls that are asked for, on all tuning samples, that a search may make
SEARCHES = {"random": random_search, "cem": cem_search, "tpe": tpe, "nsga2": nsga2, "ppo": ppo}


def samples(source: str, count: int, first_seed: int) -> list[EvaluationSample]:
    """Prompts of a set, each with a seed of its own."""
    found = load_prompts(source, limit=count, seed=0)
    return [EvaluationSample(prompt, first_seed + k) for k, prompt in enumerate(found)]


def make_search(model: str, runs: Path, on_progress: Any) -> JointSearch:
    """The searches of one model."""
    settings = TuningSettings(CALLS, FINE, batch=BATCH, rivals=False)
    cache = RunCache.open(runs / model, {"model": model, "fine": FINE})
    tuning, check = samples("pebble-tuning", TUNING, 0), samples("pebble", CHECK, FIRST_CHECK_SEED)
    subject = EngineSubject(model, model)
    return JointSearch(subject, settings, JointSettings(SEARCHES), tuning, check, cache, on_progress)


def run_seed(search: JointSearch, seed: int, candidates: int, found: dict[str, Any]) -> None:
    """What all searches find under a seed, added to what was found of the model before."""
    for calls in CALLS:
        known = {(row["calls"], row["label"]) for row in found.setdefault("rows", [])}
        if (calls, seed) in {(one["calls"], one["seed"]) for one in found.setdefault("searches", [])}:
            continue
        search.joint = JointSettings(SEARCHES, candidates * calls * TUNING, seed)
        result = search.search(calls)
        found["rows"] += [describe_row(row) for row in result.rows[:2] if (calls, row.label) not in known]
        found["searches"] += [describe(result, outcome, seed) for outcome in result.outcomes]
    found |= {"references": search.grids.agreement.words, "machine": describe_machine(search.subject)}


def describe_row(row: TuningRow) -> dict[str, Any]:
    """A row of the check."""
    scores = {"psnr": [one.psnr for one in row.scores], "spent": row.mean_calls}
    return {"calls": row.calls, "label": row.label, "policy": row.spec, **scores}


def describe(result: JointResult, outcome: SearchOutcome, seed: int) -> dict[str, Any]:
    """What one search has found under one seed."""
    row = result.rows[0] if outcome.row is None else outcome.row
    curve = [(trial.charged, trial.best) for trial in outcome.trials if math.isfinite(trial.best)]
    written = result.chosen is not None and result.chosen.name == outcome.name and result.policy != result.grid
    return {
        **describe_row(row),
        "label": outcome.name,
        "seed": seed,
        "charged": outcome.charged,
        "candidates": count_states(list(outcome.trials)),
        "values": {} if outcome.best is None else outcome.best.values,
        "tuning": None if outcome.best is None else outcome.best.quality,
        "replaces": outcome.best is not None and outcome.lead.counts and row.label != DP,
        "written": written,
        "curve": curve,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of runs that are kept")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--candidates", type=int, default=CANDIDATES, help="on all samples, that a search may make")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(stderr=True)
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.is_file() else {}
    with progress_bar(console) as on_progress:
        searches = {model: make_search(model, given.runs, on_progress) for model in given.models}
        for seed, (model, search) in itertools.product(SEEDS, searches.items()):
            run_seed(search, seed, given.candidates, found.setdefault(model, {}))
            found[model]["candidates"] = given.candidates
            given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
