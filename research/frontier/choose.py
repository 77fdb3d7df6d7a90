"""The constants of `adaptive_grid`, chosen with one family left out: `python -m research.frontier.choose NETWORKS`.

Constants are chosen in groups (`CANDIDATES`), the others as in `START`:

- `eps`, `x0`, `others`: slopes of the density (rise, fall) of networks that put out eps, x0, and others (v, flows);
- `pace`: how strongly steps adapt (adapt, bend), of all.

A candidate's gain on a network is its mean lead over fixed samplers (`RIVALS`) with as many calls (interpolated), at
the median and in p10, for 8, 10 and 15 calls; leads count up to `ENOUGH`, so that a network on which the default is far
ahead does not outvote one on which it is behind. For a family the candidate is taken that gains most on the networks of
all other families that the group concerns. Tuned are the slopes that gain most on the network itself. `adapt` is at
most 0.4: above it, up to twice the calls that were asked for would be made at high guidance. Samples and labels are of
another seed than those of the table. Finished columns are kept in `--runs`; several processes may each measure other
networks first (`--measure`).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console

from research.frontier.measure import Measured, low
from research.frontier.networks import Network, find_network

NETWORKS = (
    *("digits_epsilon_linear", "animals_epsilon_scaled_linear", "food_v_zero_snr", "animals_edm"),
    *("digits_sample_cosine", "things_flow", "things_flow_distilled", "clips_flow"),
)
Values = tuple[float, ...]
Constants = Mapping[str, Values]
START: Constants = {"eps": (0.0, 0.3), "x0": (0.3, 0.1), "others": (0.3, 0.3), "pace": (0.3, 40.0)}
CANDIDATES: Mapping[str, tuple[Values, ...]] = {
    "eps": tuple(itertools.product((-0.1, 0.0, 0.1, 0.25), (0.2, 0.3, 0.45))),
    "x0": (*itertools.product((0.1, 0.3, 0.5), (0.05, 0.1, 0.2)), (0.8, 0.05), (0.8, 0.1)),
    "others": (*itertools.product((0.1, 0.3, 0.5), (0.2, 0.3, 0.4)), (0.2, 0.2), (0.2, 0.25), (0.2, 0.3)),
    "pace": ((0.0, 0.0), (0.2, 40.0), (0.3, 0.0), (0.3, 40.0), (0.3, 80.0), (0.4, 40.0)),
}
RIVALS = tuple(itertools.product(("unipc", "adams(of='x0')"), ("trailing", "karras", "logsnr", "uniform")))
RIVAL_CALLS = (6, 8, 10, 15, 20, 25)
CALLS = (8, 10, 15)
SEED = 99
LOST, ENOUGH = -10.0, 3.0  # dB that count


def samples_of(name: str) -> int:
    """How many samples of a network are used to choose on."""
    return 16 if name.startswith("clips") else 32


def kind_of(network: Network) -> str:
    """What the network puts out: eps, v, x0 or flow."""
    return str(network.backbone().prediction)


def groups_of(kind: str) -> tuple[str, str]:
    """The groups of constants that matter to networks of this kind."""
    return (kind if kind in ("eps", "x0") else "others"), "pace"


def spec(kind: str, constants: Constants, calls: int) -> str:
    """The policy with these constants."""
    adapt, bend = constants["pace"]
    rise, fall = constants[groups_of(kind)[0]]
    return f"adaptive_grid(calls={calls}, adapt={adapt}, bend={bend}, rise={rise}, fall={fall})"


def column_of(measured: Measured, constants: Constants, calls: int) -> dict[str, Any]:
    """The column of the policy with these constants."""
    return measured.column(spec(kind_of(measured.network), constants, calls))


def gain(measured: Measured, constants: Constants) -> float:
    """Mean lead over fixed samplers with as many calls, at the median and in p10, as much of it as counts."""
    leads = []
    for calls in CALLS:
        column = column_of(measured, constants, calls)
        own = median(column["psnr"]), low(column["psnr"])
        leads += [a - np.interp(column["calls"], RIVAL_CALLS, b) for a, b in zip(own, rivals(measured), strict=True)]
    return float(np.mean(np.clip(leads, LOST, ENOUGH)))


def rivals(measured: Measured) -> tuple[list[float], list[float]]:
    """The best fixed sampler at each number of calls, at the median and in p10."""
    columns = {n: [measured.column("fixed", *rival, n)["psnr"] for rival in RIVALS] for n in RIVAL_CALLS}
    return (
        [max(median(values) for values in columns[n]) for n in RIVAL_CALLS],
        [max(low(values) for values in columns[n]) for n in RIVAL_CALLS],
    )


def gains_of(measured: Measured) -> dict[str, dict[Values, float]]:
    """What each candidate of each group gains on a network."""
    groups = groups_of(kind_of(measured.network))
    return {g: {c: gain(measured, {**START, g: c}) for c in CANDIDATES[g]} for g in groups}


def choose(gains: Mapping[str, Mapping[Values, float]], names: Sequence[str]) -> Values:
    """The candidate that gains most on these networks."""
    return max(gains[names[0]], key=lambda candidate: float(np.mean([gains[name][candidate] for name in names])))


def choose_all(
    gains: Mapping[str, Mapping[str, Mapping[Values, float]]], families: Mapping[str, str]
) -> dict[str, dict[str, Values]]:
    """Of each group the candidate for each network, its family left out; and for "all", with none left out."""
    found: dict[str, dict[str, Values]] = {name: {} for name in (*gains, "all")}
    for group in CANDIDATES:
        known = {name: of[group] for name, of in gains.items() if group in of}
        for name in gains:
            others = [n for n in known if families[n] != families[name]]
            found[name][group] = choose(known, others or list(known))
        found["all"][group] = choose(known, list(known))
    return found


def measure(name: str, runs: Path, console: Console) -> Measured:
    """A network's columns."""
    network = find_network(name, samples_of(name), SEED)
    measured = Measured(network, runs / f"{network.name}-{samples_of(name)}-{SEED}.json")
    console.print(f"{name}: references agree to {measured.agreement[0]:.0f} / {measured.agreement[1]:.0f} dB")
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.frontier.choose", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="of the zoo, folders of others")
    parser.add_argument("--measure", action="store_true", help="only run the columns, and keep them")
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"), help="keeps finished columns")
    parser.add_argument("--out", type=Path, help="file of what was chosen")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(stderr=True)
    gains, families, own = {}, {}, {}
    for name in given.networks:
        measured = measure(name, given.runs, console)
        key = measured.network.name
        gains[key], families[key] = gains_of(measured), measured.network.family
        slopes = next(iter(gains[key].values()))
        own[key] = max(slopes, key=lambda pair: slopes[pair])
        console.print({group: {c: round(v, 2) for c, v in of.items()} for group, of in gains[key].items()}, own[key])
    if given.measure:
        return
    found = {"chosen": choose_all(gains, families), "tuned": own}
    console.print(found)
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
