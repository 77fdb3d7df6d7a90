"""`error_control` against a blind mask: `python -m research.frontier.masks NETWORKS --out masks.md`.

The mask calls the steps that `error_control` called most often on other samples of the same network (seed 99), as many
of 50 as its mean number of calls on the samples of the table, rounded up. Both forecast v linearly in t and run under
UniPC. Closeness as in `table.py`.
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Sequence

import torch
from rich.console import Console

from research.frontier.choose import SEED, samples_of
from research.frontier.command import make_parser
from research.frontier.measure import Measured, low
from research.frontier.networks import find_network
from research.frontier.rivals import CLIPS, SAMPLES
from skipstone.engine.drivers import denoise_many
from skipstone.registry import parse

STEPS, SOLVER = 50, "unipc"
TOLERANCES = ((0.002, 3), (0.004, 4), (0.009, 5))  # tol and max_skip
HEAD = "| network | tol | calls | `error_control` | mask, calls | mask | lead |\n|---|--:|--:|---|--:|---|---|"
TAIL, WORST = 1.0, -0.5  # dB of the bars


def called_steps(name: str, policy: str) -> list[int]:
    """Numbers of the steps that a policy called on other samples, the most frequent first."""
    network, rule = find_network(name, samples_of(name), SEED), parse("policy", policy)
    times = parse("grid", "trailing").times(network.schedule, STEPS)
    results = denoise_many(network.backbone(), network.problems(times), parse("solver", SOLVER), rule)
    counts = collections.Counter(
        times.index(a.t) for r in results for a in r.run.accepted_attempts if not a.is_forecast
    )
    return [step for step, _ in counts.most_common()]


def row(measured: Measured, name: str, tol: float, skips: int) -> tuple[str, tuple[float, float]]:
    """A line of the table, and the lead at the median and in p10."""
    policy = f"error_control(tol={tol}, max_skip={skips})"
    own = measured.column(policy, SOLVER)
    kept = called_steps(name, policy)[: math.ceil(own["calls"] - 1e-9)]
    skipped = ",".join(str(step) for step in range(STEPS) if step not in kept)
    blind = measured.column(f"mask(skips='{skipped}')", SOLVER)
    (a, b), (c, d) = ((statistics.median(x["psnr"]), low(x["psnr"])) for x in (own, blind))
    return (
        f"| {measured.network.name} | {tol} | {own['calls']:.1f} | {a:.1f} / {b:.1f} | {blind['calls']:.1f} "
        f"| {c:.1f} / {d:.1f} | {a - c:+.1f} / {b - d:+.1f} |"
    ), (a - c, b - d)


def verdict(leads: Sequence[tuple[float, float]]) -> str:
    """How often the bars are met."""
    ahead = sum(tail >= TAIL for _, tail in leads)
    behind = sum(min(lead) < WORST for lead in leads)
    return (
        f"Of {len(leads)} cases, `error_control` leads its mask by {TAIL:g} dB in p10 in {ahead}; in {behind} it is "
        f"more than {-WORST:g} dB behind in either."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = make_parser("masks", __doc__)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, lines, leads = Console(stderr=True, soft_wrap=True), [HEAD], []
    for name in given.networks:
        network = find_network(name, CLIPS if name.startswith("clips") else SAMPLES)
        measured = Measured(network, given.runs / f"{network.name}-{network.samples}-{network.seed}.json")
        for tol, skips in TOLERANCES:
            line, lead = row(measured, name, tol, skips)
            lines.append(line)
            leads.append(lead)
            console.print(line)
    lines += ["", verdict(leads)]
    console.print(lines[-1])
    if given.out is not None:
        given.out.write_text("\n".join(["# `error_control` against a blind mask", "", *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
