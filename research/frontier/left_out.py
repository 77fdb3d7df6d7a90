"""The default against one fixed sampler, both untuned: `python -m research.frontier.left_out NETWORKS`.

`table.py` holds the default against the best of 25 fixed samplers on the very samples of the table, chosen afterwards
for each network and number of calls: what nobody has who does not measure first. Here the rival is chosen as the
default's constants are: the sampler that is least behind the best on the networks of all other families, at the median
and in p10, over all numbers of calls. Beside it stands what an oracle would reach that takes the best of the 25 for
each sample: how often it would meet the bars of `rivals.py`. Columns come from `--runs`, as `table.py` leaves them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from research.frontier.command import make_parser
from research.frontier.measure import Measured, low
from research.frontier.networks import find_network
from research.frontier.rivals import BAR_CALLS, CLIPS, MEDIAN_LEAD, SAMPLERS, SAMPLES, TAIL_LEAD, WORST
from research.frontier.table import CONSTANTS, Lead, fixed_columns, rows_of

LOST = -20.0  # dB that count, of a sampler that fails


class Case(NamedTuple):
    """A network and a number of calls: PSNR of each sample, by the default and by the fixed samplers."""

    network: str
    family: str
    calls: int
    own: Sequence[float]
    fixed: Mapping[str, Sequence[float]]

    @property
    def best(self) -> Lead:
        """The best at the median, and the best in p10."""
        return max(map(statistics.median, self.fixed.values())), max(map(low, self.fixed.values()))

    def lead(self, values: Sequence[float] | None, over: Lead) -> Lead:
        """How far these are ahead, at the median and in p10; `LOST` for a sampler that fails."""
        if values is None:
            return LOST, LOST
        return statistics.median(values) - over[0], low(values) - over[1]


def cases_of(measured: Measured, constants: Mapping[str, object]) -> list[Case]:
    """The cases of a network."""
    network, rows = measured.network, rows_of(constants, measured.network.name)
    found = []
    for calls in BAR_CALLS:
        column = rows[f"default, calls={calls}"](measured)
        fixed = fixed_columns(measured, math.ceil(column["calls"] - 1e-9))
        found.append(Case(network.name, network.family, calls, column["psnr"], fixed))
    return found


def choose_sampler(cases: Sequence[Case]) -> str:
    """The fixed sampler that is least behind the best one on these cases."""
    names = [f"{solver} / {grid}" for solver, grid in SAMPLERS]
    return max(names, key=lambda n: np.mean([np.maximum(c.lead(c.fixed.get(n), c.best), LOST) for c in cases]))


def count(leads: Sequence[Lead]) -> str:
    """How often the bars are met."""
    both = sum(a >= MEDIAN_LEAD and b >= TAIL_LEAD for a, b in leads)
    behind = sum(min(lead) < WORST for lead in leads)
    return (
        f"{MEDIAN_LEAD:g} dB ahead at the median in {sum(a >= MEDIAN_LEAD for a, _ in leads)} of {len(leads)} cases, "
        f"{TAIL_LEAD:g} dB in p10 in {sum(b >= TAIL_LEAD for _, b in leads)}, both in {both}; more than {-WORST:g} dB "
        f"behind in either in {behind}"
    )


def report(cases: Sequence[Case]) -> str:
    """The table and what it says, as Markdown."""
    lines = ["| network | rival | " + " | ".join(f"`calls={n}`" for n in BAR_CALLS) + " |", "|---|---|--:|--:|--:|--:|"]
    leads: list[Lead] = []
    for name in dict.fromkeys(case.network for case in cases):
        own = [case for case in cases if case.network == name]
        rival = choose_sampler([case for case in cases if case.family != own[0].family])
        new = [c.lead(c.own, c.lead(c.fixed.get(rival), (0.0, 0.0))) for c in own]
        lines.append(f"| {name} | {rival} | " + " | ".join(f"{a:+.1f} / {b:+.1f}" for a, b in new) + " |")
        leads += new
    oracle = [c.lead([max(v) for v in zip(*c.fixed.values(), strict=True)], c.best) for c in cases]
    middle = [statistics.median(values) for values in zip(*leads, strict=True)]
    return "\n".join(
        [
            f"The default: {count(leads)}. Its lead in the median case: {middle[0]:+.1f} / {middle[1]:+.1f} dB.",
            f"\nAn oracle that takes the best of 25 for each sample, against the best of 25 for all: {count(oracle)}.",
            "\nLead at the median / in p10, in dB:\n",
            *lines,
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = make_parser("left_out", __doc__)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    constants, cases = json.loads(CONSTANTS.read_text(encoding="utf-8")), []
    for name in given.networks:
        samples = CLIPS if name.startswith("clips") else SAMPLES
        network = find_network(name, samples)
        file = given.runs / f"{network.name}-{samples}-{network.seed}.json"
        cases += cases_of(Measured(network, file), constants)
    text = report(cases)
    print(text)
    if given.out is not None:
        head = "# The default against one fixed sampler, both chosen on other families\n\n"
        given.out.write_text(f"{head}{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
