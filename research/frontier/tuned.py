"""What `skipstone tune` finds for a network: `python -m research.frontier.tuned NETWORKS`.

Runs the command's own searches, for the slopes of the default (`SlopeSearch`) and for grids (`TimeGridSearch`), on 16
samples of seed 99 for 10 and 15 calls, and checks slopes on 16 others. Grids for 8 and 20 calls cost little more. What
is found is kept in `--runs`, as JSON; `peers.py` runs it on the samples of the table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from research.frontier.choose import SEED
from research.frontier.command import make_parser
from research.frontier.networks import find_network
from research.frontier.rivals import BAR_CALLS
from research.frontier.subject import NetworkSubject, numbered
from skipstone.errors import SkipstoneError
from skipstone.registry import spell
from skipstone.tuning.run_cache import RunCache
from skipstone.tuning.search import TimeGridSearch, TuningSettings
from skipstone.tuning.slopes import SlopeSearch, slope_policy

SAMPLES = 16  # to tune on, and as many others to check slopes on
SLOPE_CALLS, FINE = (10, 15), 100


def searches(name: str, runs: Path) -> tuple[SlopeSearch, TimeGridSearch]:
    """Both searches on a network, over one cache."""
    subject = NetworkSubject(find_network(name, 2 * SAMPLES, SEED))
    cache = RunCache.open(runs / "tune" / subject.name, {"model": subject.name, "seed": SEED, "fine": FINE})
    tuning, check = numbered(range(SAMPLES)), numbered(range(SAMPLES, 2 * SAMPLES))
    slopes = SlopeSearch(subject, TuningSettings(SLOPE_CALLS, FINE, batch=SAMPLES), tuning, check, cache)
    grids = TuningSettings(BAR_CALLS, FINE, batch=SAMPLES, rivals=False)
    return slopes, TimeGridSearch(subject, grids, tuning, (), cache)


def read_found(file: Path) -> dict[str, Any]:
    """What was found before."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def file_of(runs: Path, network: str) -> Path:
    """Where what is found is kept."""
    return runs / f"tuned-{network}.json"


def find_slopes(search: SlopeSearch) -> dict[str, Any]:
    """Policies with the slopes that were found, or why there are none."""
    try:
        found = search.run()
    except SkipstoneError as refused:
        return {"refused": str(refused)}
    policies = {str(calls): spell(slope_policy(found.slopes, calls)) for calls in BAR_CALLS}
    best = {str(calls): spell(slope_policy(found.best, calls)) for calls in BAR_CALLS}
    return {"policies": policies, "best": best, "lead": found.lead, "words": found.words}


def find_grids(search: TimeGridSearch) -> dict[str, Any]:
    """Policies with the grids that were found, or why there are none."""
    try:
        found = search.run()
    except SkipstoneError as refused:
        return {"refused": str(refused)}
    return {"policies": {str(calls): spell(found.policy(calls)) for calls in found.grids}}


def tune(name: str, runs: Path, wanted: Sequence[str] = ("slopes", "grids")) -> dict[str, Any]:
    """What the command finds for a network, each search run once."""
    slopes, grids = searches(name, runs)
    file = file_of(runs, slopes.subject.name)
    found = read_found(file)
    for key in wanted:
        if key not in found:
            found[key] = find_slopes(slopes) if key == "slopes" else find_grids(grids)
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = make_parser("tuned", __doc__)
    parser.add_argument("--only", nargs="*", default=("slopes", "grids"), help="which searches")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(soft_wrap=True)
    for name in given.networks:
        found = tune(name, given.runs, given.only)
        console.print(name, found.get("slopes", {}).get("words") or found.get("slopes", {}), highlight=False)


if __name__ == "__main__":
    main()
