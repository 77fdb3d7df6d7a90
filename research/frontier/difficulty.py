"""H3: do harder samples get more calls? `python -m research.frontier.difficulty NETWORKS --out difficulty.md`.

A sample's difficulty is the number of calls with which a fixed sampler (UniPC on the grid that is best for the network
with 15 calls) comes as close to its converged picture as the median sample with 15: interpolated between 6, 8, 10, 15,
20 and 25 calls, 30 where 25 do not do. It is compared to the calls that the default makes of that sample, by the rank
correlation, with an interval of 90 % by 2000 resamplings. Samples are those of `choose.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from scipy.stats import spearmanr

from research.frontier.choose import RIVAL_CALLS, SEED, samples_of
from research.frontier.command import make_parser
from research.frontier.measure import Measured
from research.frontier.networks import find_network
from skipstone.engine.drivers import denoise_many
from skipstone.registry import parse

CALLS, NEVER = 15, 30.0
GRIDS = ("trailing", "karras", "logsnr", "uniform")
POLICY = f"adaptive_grid(calls={CALLS})"
WANTED = 0.3  # of the rank correlation


def difficulties(measured: Measured) -> list[float]:
    """Calls that each sample needs."""

    def psnr(grid: str, calls: int) -> list[float]:
        values: list[float] = measured.column("fixed", "unipc", grid, calls)["psnr"]
        return values

    grid = max(GRIDS, key=lambda g: statistics.median(psnr(g, CALLS)))
    wanted = statistics.median(psnr(grid, CALLS))
    rising = np.maximum.accumulate(np.array([psnr(grid, calls) for calls in RIVAL_CALLS]), axis=0)
    return [float(np.interp(wanted, own, RIVAL_CALLS, right=NEVER)) for own in rising.T]


def calls_made(name: str) -> list[float]:
    """Calls that the default makes of each sample."""
    network, rule = find_network(name, samples_of(name), SEED), parse("policy", POLICY)
    times = parse("grid", "trailing").times(network.schedule, 50)
    results = denoise_many(network.backbone(), network.problems(times), parse("solver", rule.solver), rule)
    return [float(r.run.cost) for r in results]


def correlation(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Rank correlation, and where it lies with 90 %."""
    pairs, generator = np.array([a, b]), np.random.default_rng(0)
    drawn = [spearmanr(*pairs[:, generator.integers(0, len(a), len(a))]).statistic for _ in range(2000)]
    least, most = np.nanquantile(drawn, [0.05, 0.95])
    return float(spearmanr(a, b).statistic), float(least), float(most)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = make_parser("difficulty", __doc__)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(stderr=True, soft_wrap=True)
    lines = [
        "| network | calls needed (p10 to p90) | calls made (p10 to p90) | rank correlation |",
        "|---|---|---|---|",
    ]
    found = []
    for name in given.networks:
        network = find_network(name, samples_of(name), SEED)
        measured = Measured(network, given.runs / f"{network.name}-{network.samples}-{SEED}.json")
        needed, made = difficulties(measured), calls_made(name)
        rho, least, most = correlation(needed, made)
        found.append(rho)
        spans = [" to ".join(f"{v:.1f}" for v in np.quantile(values, [0.1, 0.9])) for values in (needed, made)]
        lines.append(f"| {network.name} | {spans[0]} | {spans[1]} | {rho:+.2f} ({least:+.2f} to {most:+.2f}) |")
        console.print(lines[-1])
    lines += ["", f"Of {len(found)} networks, {sum(rho >= WANTED for rho in found)} have {WANTED:g} or more."]
    if given.out is not None:
        given.out.write_text(
            "\n".join(["# H3: do harder samples get more calls?", "", *lines]) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
