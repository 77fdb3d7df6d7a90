"""The frontier's table: `python -m research.frontier.table digits_sample_cosine --out table.md`.

Closeness (PSNR in dB of clipped pictures) to a converged run, median / p10 / worst. `default` has the constants that
`choose.py` found with the network's family left out; `tuned` has the slopes that were best on other samples of the
same network (its rivals are not run). The rival is the best fixed sampler of `rivals.SAMPLERS` on the same samples with
the policy's mean calls, rounded up: the best at the median and the best in p10. `each` has for every sample the best of
those 25, as an oracle would choose it. The interval of a lead in p10 is a paired bootstrap's, 90 %. Calls are counted
by a hook on the network. Finished columns are kept in `--runs`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from research.frontier.choose import column_of
from research.frontier.command import make_parser
from research.frontier.measure import Measured, low
from research.frontier.networks import find_network
from research.frontier.rivals import BAR_CALLS, CLIPS, MEDIAN_LEAD, SAMPLERS, SAMPLES, TAIL_LEAD, WORST

CONSTANTS = Path(__file__).with_name("constants.json")
STRIDES = tuple(f"stride(tol={tol})" for tol in (0.02, 0.0115, 0.004, 0.0018))
HEAD = (
    "| network | policy | calls | PSNR | best fixed at the median | best fixed in p10 | each | lead "
    "| interval in p10 |\n"
    "|---|---|--:|---|---|---|---|---|---|"
)
Lead = tuple[float, float]
Row = Callable[[Measured], dict[str, Any]]


def rows_of(constants: Mapping[str, Any], name: str) -> dict[str, Row]:
    """The rows of a network: what each is called, and how its column is drawn."""
    rise, fall = constants["tuned"][name]
    rows: dict[str, Row] = {}
    for calls in BAR_CALLS:
        rows[f"default, calls={calls}"] = partial(column_of, constants=constants["chosen"][name], calls=calls)
    for calls in BAR_CALLS:
        policy = f"adaptive_grid(calls={calls}, rise={rise}, fall={fall})"
        rows[f"tuned, calls={calls}"] = partial(Measured.column, policy=policy)
    return rows | {f"`{policy}`": partial(Measured.column, policy=policy) for policy in STRIDES}


def fixed_columns(measured: Measured, calls: int) -> dict[str, list[float]]:
    """PSNR of every fixed sampler that ends in finite pictures."""
    columns = {f"{solver} / {grid}": measured.column("fixed", solver, grid, calls) for solver, grid in SAMPLERS}
    return {name: c["psnr"] for name, c in columns.items() if "psnr" in c and all(map(math.isfinite, c["psnr"]))}


def best_fixed(measured: Measured, calls: int) -> tuple[tuple[float, str], tuple[float, str]]:
    """The best fixed sampler at the median and the best in p10, each with its name."""
    known = fixed_columns(measured, calls)
    return (
        max((statistics.median(values), name) for name, values in known.items()),
        max((low(values), name) for name, values in known.items()),
    )


def interval(own: Sequence[float], rival: Sequence[float]) -> tuple[float, float]:
    """Where the lead in p10 lies with 90 %, by 2000 paired resamplings."""
    pairs, generator = np.array([own, rival]), np.random.default_rng(0)
    drawn = generator.integers(0, len(own), (2000, len(own)))
    leads = np.quantile(pairs[0][drawn], 0.1, axis=1) - np.quantile(pairs[1][drawn], 0.1, axis=1)
    return float(np.quantile(leads, 0.05)), float(np.quantile(leads, 0.95))


def own_row(measured: Measured, label: str, column: Mapping[str, Any]) -> str:
    """A policy's line of the table, without rivals."""
    own = column["psnr"]
    return (
        f"| {measured.network.name} | {label} | {column['calls']:.1f} | {statistics.median(own):.1f} / {low(own):.1f} "
        f"/ {min(own):.1f} | | | | | |"
    )


def row(measured: Measured, label: str, column: Mapping[str, Any]) -> tuple[str, Lead]:
    """A policy's line of the table, and its lead at the median and in p10."""
    own, calls = column["psnr"], math.ceil(column["calls"] - 1e-9)
    (rival, name), (rival_tail, tail_name) = best_fixed(measured, calls)
    lead = statistics.median(own) - rival, low(own) - rival_tail
    known = fixed_columns(measured, calls)
    each = [max(values) for values in zip(*known.values(), strict=True)]
    least, most = interval(own, known[tail_name])
    return (
        f"| {measured.network.name} | {label} | {column['calls']:.1f} | {statistics.median(own):.1f} / {low(own):.1f} "
        f"/ {min(own):.1f} | {rival:.1f} ({name}) | {rival_tail:.1f} ({tail_name}) "
        f"| {statistics.median(each):.1f} / {low(each):.1f} | {lead[0]:+.1f} / {lead[1]:+.1f} "
        f"| {least:+.1f} to {most:+.1f} |"
    ), lead


def verdict(leads: Sequence[Lead]) -> str:
    """How often the bars of `rivals.py` are met."""
    met = sum(a >= MEDIAN_LEAD and b >= TAIL_LEAD for a, b in leads)
    behind = sum(min(lead) < WORST for lead in leads)
    median = sum(a >= MEDIAN_LEAD for a, _ in leads)
    tail = sum(b >= TAIL_LEAD for _, b in leads)
    return (
        f"Of {len(leads)} cases of the default, {median} lead by {MEDIAN_LEAD:g} dB at the median, {tail} by "
        f"{TAIL_LEAD:g} dB in p10, {met} by both; {behind} are more than {-WORST:g} dB behind in either."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = make_parser("table", __doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each network; at most 16 of videos")
    parser.add_argument("--rows", nargs="*", default=("default", "tuned", "`stride"), help="which kinds of rows")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    constants = json.loads(CONSTANTS.read_text(encoding="utf-8"))
    console, lines, leads = Console(stderr=True, soft_wrap=True), [HEAD], []
    for name in given.networks:
        samples = min(given.samples, CLIPS) if name.startswith("clips") else given.samples
        network, steps = find_network(name, samples), 120 if name.startswith("pebble") else 300
        measured = Measured(network, given.runs / f"{network.name}-{samples}-{network.seed}.json", steps)
        console.print(f"{name}: references agree to {measured.agreement[0]:.0f} / {measured.agreement[1]:.0f} dB")
        for label, draw in rows_of(constants, network.name).items():
            if not label.startswith(tuple(given.rows)):
                continue
            if label.startswith("tuned"):
                lines.append(own_row(measured, label, draw(measured)))
            else:
                line, lead = row(measured, label, draw(measured))
                lines.append(line)
                leads += [lead] if label.startswith("default") else []
            console.print(lines[-1])
    lines += ["", verdict(leads)]
    console.print(lines[-1])
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
