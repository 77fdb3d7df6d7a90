"""What choosing a schedule for each sample could add on Pebble, at most: the oracle schedule.

skipstone tune --prompts pebble-tuning --limit 24 --calls 6 --calls 8 --calls 10 --calls 12 --calls 14 --calls 16 --calls 20 --calls 24 --no-rivals --out grids
python research/agents/oracle.py --grids grids --limit 32 --price 0.5 --price 1 --price 2 --out oracle

Every schedule of the ladder is really run on every sample, once for all prices; Ctrl-C loses nothing. Guides are the
grids of `skipstone tune` (found on other prompts), and what --guide says. Prints a table: the best guide in the mean,
the oracle, and what lies between, with intervals over samples; writes `oracle.jsonl` for each price.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skipstone.evaluation.engine_subject import EngineSubject
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.references import EvaluationSample
from skipstone_bench.oracle import OracleSettings, Utility, oracle_schedule
from skipstone_bench.oracle.schedule import CALLS, RESULTS

QUARTILE = 0.75  # of the gains of the tuning prompts, as `tune` takes it


def guides_and_gain(folder: Path | None) -> tuple[list[str], tuple[tuple[float, float], ...] | None]:
    """The grids of a folder that `skipstone tune` has written, and (angle, gain) as it has measured them."""
    if folder is None:
        return [], None
    found: Any = json.loads((folder / "paths.json").read_text(encoding="utf-8"))
    gain = tuple((one["angle"], float(np.quantile(np.square(one["rms"]), QUARTILE))) for one in found["gains"])
    return [grid["policy"] for grid in found["grids"]], gain


def interval(values: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """95 % of the mean, by bootstrap over samples."""
    rng = np.random.default_rng(0)
    means = rng.choice(np.asarray(values), (draws, len(values))).mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", default="pebble", help="a set or a file")
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="of all samples, as skipstone evaluate agent has it")
    parser.add_argument("--grids", type=Path, help="what skipstone tune has written")
    parser.add_argument("--guide", action="append", default=[], help="one more schedule for all samples; repeat it")
    parser.add_argument("--calls", type=int, action="append", help=f"of own grids; {CALLS} by default")
    parser.add_argument("--price", type=float, action="append", help="dB a call; 1 by default; repeat it")
    parser.add_argument("--floor", type=float, default=10.0, help="of the utility, as agents have it")
    parser.add_argument("--cap", type=float, default=50.0, help="of the utility, as agents have it")
    parser.add_argument("--reference", default="", help="the converged run; each sample's own fine run by default")
    parser.add_argument("--sweeps", type=int, default=0, help="of moving single places")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    eval_samples = [EvaluationSample(p, arguments.seed) for p in load_prompts(arguments.prompts, limit=arguments.limit)]
    guides, gain = guides_and_gain(arguments.grids)
    asked = OracleSettings(
        arguments.calls or CALLS,
        (*guides, *arguments.guide),
        gain=gain,
        reference=arguments.reference,
        sweeps=arguments.sweeps,
    )

    def on_progress(what: str, done: float, total: float) -> None:
        print(f"\r{what}: {done:g} of {total:g}   ", end="", file=sys.stderr, flush=True)

    if not guides and not arguments.guide:
        parser.error("say --grids FOLDER or --guide SPEC: there is nothing to compare the oracle with")
    print("| price | best guide for all | U | calls | oracle: U | calls | gap | own grids chosen |")
    print("|---|---|---|---|---|---|---|---|")
    for price in arguments.price or [1.0]:
        utility = Utility(price, arguments.floor, arguments.cap)
        chosen = oracle_schedule(
            EngineSubject("pebble", "pebble"), eval_samples, arguments.out, utility, asked, on_progress
        )
        shutil.copy(arguments.out / RESULTS, arguments.out / f"oracle-{price:g}.jsonl")
        lines = [json.loads(line) for line in (arguments.out / RESULTS).read_text(encoding="utf-8").splitlines()]
        gaps = [line["utility"] - line["guide_utility"] for line in lines]
        low, high = interval(gaps)
        fixed = statistics.fmean(line["guide_utility"] for line in lines)
        spent, before = (statistics.fmean(line[name] for line in lines) for name in ("calls", "guide_calls"))
        own = sum(choice.result.kind != "guide" for choice in chosen)
        gap = statistics.fmean(gaps)
        cells = [f"{price:g}", f"`{lines[0]['guide']}`", f"{fixed:.2f}", f"{before:.1f}", f"{fixed + gap:.2f}"]
        cells += [f"{spent:.1f}", f"{gap:.2f} ({low:.2f} to {high:.2f})", f"{own} of {len(lines)}"]
        print(f"\n| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
