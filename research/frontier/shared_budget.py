"""Calls shared between samples: `python -m research.frontier.shared_budget NETWORKS --out shared_budget.md`.

The default runs with 8, 10, 12, 15, 20 and 25 calls on the samples of `peers.py`. Then each sample is given one of
these runs, so that the batch makes as many calls as with 12 or with 15 for all:

- oracle: so that the sum of mean square errors is least (equal marginal error), each sample's errors being known;
- predicted: the same, by errors that are predicted from what a run shows in its first calls. log(mean square error) =
  a(calls) + b z with z the mean log of the clean estimate's relative change (as `adaptive_grid` has it) between the
  first `SEEN` calls; b is fitted on all other families, the a of a network are taken as known.

Figures are dB over the same number of calls for all, at the median / in p10, each at the mean calls that were made.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from research.frontier.choose import spec
from research.frontier.command import make_parser
from research.frontier.measure import low
from research.frontier.peers import CONSTANTS, Peers, measured
from skipstone.engine.contracts import Run
from skipstone.engine.drivers import denoise_many
from skipstone.policies.adaptive_grid import _calls, _relative_changes
from skipstone.registry import parse

LADDER, SHARED, SEEN = (8, 10, 12, 15, 20, 25), (12, 15), 5
GRID, STEPS = "trailing", 50


class Runs(NamedTuple):
    """The default's runs on a network.

    Args:
        name, family: Of the network.
        calls: (numbers of calls, samples), as they were made.
        psnr: The same, to the reference.
        change: Of each sample, z.
    """

    name: str
    family: str
    calls: Any
    psnr: Any
    change: Any

    @property
    def errors(self) -> Any:
        """Mean square errors."""
        return 10 ** (-self.psnr / 10)


def first_change(run: Run) -> float:
    """Mean log of the relative change between the first calls."""
    changes = _relative_changes(run, _calls(run)[:SEEN])
    return statistics.fmean(map(math.log, changes)) if changes else 0.0


def drawn(found: Peers) -> dict[str, Any]:
    """Calls, PSNR and z of each sample with each number of calls."""
    network, backbone = found.network, found.network.backbone()
    chosen = json.loads(CONSTANTS.read_text(encoding="utf-8"))["chosen"][network.name]
    times = parse("grid", GRID).times(network.schedule, STEPS)
    made: dict[str, Any] = {"calls": [], "psnr": [], "change": []}
    for calls in LADDER:
        policy = parse("policy", spec(str(backbone.prediction), chosen, calls))
        results = denoise_many(backbone, network.problems(times), parse("solver", policy.solver), policy)
        made["calls"].append([r.run.cost for r in results])
        made["psnr"].append(found.psnr(network.picture(torch.stack([r.x for r in results]))))
        made["change"].append([first_change(r.run) for r in results])
    return made


def runs_of(name: str, folder: Path) -> Runs:
    """The runs on a network, drawn once."""
    found = measured(name, folder)
    kept = found.once("shared budget", lambda: drawn(found))
    change = np.array(kept["change"])[LADDER.index(SHARED[-1])]
    return Runs(found.network.name, found.network.family, np.array(kept["calls"]), np.array(kept["psnr"]), change)


def share(errors: Any, calls: Any, budget: float) -> Any:
    """For each sample a number of calls (its index), so that the sum of errors is least within the budget.

    By one price of a call for all samples: equal marginal error. Of all prices the one that spends most within the
    budget.
    """
    best = np.zeros(errors.shape[1], dtype=int)
    for price in np.geomspace(1e-12, 1.0, 2000):
        chosen = np.argmin(errors + price * calls, axis=0)
        spent = calls[chosen, np.arange(len(chosen))].mean()
        if spent <= budget:
            return chosen
    return best


def slope(others: Sequence[Runs]) -> float:
    """b, fitted on networks with each network's own level for each number of calls."""
    x, y = [], []
    for runs in others:
        logs = np.log(runs.errors)
        x.append(np.broadcast_to(runs.change - runs.change.mean(), logs.shape).ravel())
        y.append((logs - logs.mean(axis=1, keepdims=True)).ravel())
    a, b = np.concatenate(x), np.concatenate(y)
    return float(a @ b / max(1e-12, a @ a))


def figures(runs: Runs, chosen: Any) -> tuple[float, float, float]:
    """Mean calls, median and p10 of a choice."""
    columns = np.arange(len(chosen))
    psnr = runs.psnr[chosen, columns]
    return float(runs.calls[chosen, columns].mean()), float(np.median(psnr)), low(psnr.tolist())


def over_even(runs: Runs, chosen: Any) -> tuple[float, float, float]:
    """Mean calls, and the lead over equal numbers for all with as many, at the median and in p10."""
    known = [figures(runs, np.full(runs.calls.shape[1], k)) for k in range(len(LADDER))]
    own, x = figures(runs, chosen), [math.log(k[0]) for k in known]
    at = [float(np.interp(math.log(own[0]), x, [k[i] for k in known])) for i in (1, 2)]
    return own[0], own[1] - at[0], own[2] - at[1]


def leads_of(runs: Runs, others: Sequence[Runs], calls: int) -> Mapping[str, tuple[float, float, float]]:
    """What sharing gains, by an oracle and as predicted."""
    budget = float(runs.calls[LADDER.index(calls)].mean())
    level = np.log(runs.errors).mean(axis=1, keepdims=True)
    guess = np.exp(level + slope(others) * (runs.change - runs.change.mean()))
    mean_calls = np.broadcast_to(runs.calls.mean(axis=1, keepdims=True), runs.calls.shape)
    return {
        "oracle": over_even(runs, share(runs.errors, runs.calls, budget)),
        "predicted": over_even(runs, share(guess, mean_calls, budget)),
    }


def report(known: Sequence[Runs]) -> list[str]:
    """The table and its means, as Markdown."""
    lines = ["| network | calls | oracle | predicted | rank correlation of z and PSNR |", "|---|--:|---|---|--:|"]
    all_leads: dict[str, list[tuple[float, float]]] = {"oracle": [], "predicted": []}
    for runs in known:
        others = [other for other in known if other.family != runs.family]
        for calls in SHARED:
            leads = leads_of(runs, others, calls)
            for kind, lead in leads.items():
                all_leads[kind].append(lead[1:])
            ranks = [np.argsort(np.argsort(v)) for v in (runs.change, runs.psnr[LADDER.index(calls)])]
            cells = " | ".join(f"{a:+.1f} / {b:+.1f} ({n:.1f})" for n, a, b in leads.values())
            lines.append(f"| {runs.name} | {calls} | {cells} | {np.corrcoef(*ranks)[0, 1]:+.2f} |")
    means = {kind: np.mean(found, axis=0) for kind, found in all_leads.items()}
    lines += ["", "Mean: " + ", ".join(f"{kind} {m[0]:+.1f} / {m[1]:+.1f}" for kind, m in means.items()) + " dB."]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = make_parser("shared_budget", __doc__)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = report([runs_of(name, given.runs) for name in given.networks])
    Console(soft_wrap=True).print("\n".join(lines), highlight=False)
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
