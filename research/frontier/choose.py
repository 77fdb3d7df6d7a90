"""The constants of `adaptive_grid`, chosen with one family left out: `python -m research.frontier.choose NETWORKS`.

1. Slopes of the density (`rise`, `fall`): every pair of `SLOPES` is run on every network with the same times for all
   samples (`adapt=0`, so that all pairs make the same calls), 10 and 15 of them. A pair's loss on a network is what it
   lacks to the best pair there, in dB, the mean of median and p10. For a family those slopes are taken that lose least
   on networks of the same output (eps, v, x0, flow) in *other* families; where there are none, on all other families.
2. How strongly steps adapt (`adapt`, `bend`): every pair of `PACES` is run with those slopes and 8, 10, 15 and 20
   calls; its gain on a network is the lead over a fixed sampler with as many calls (`RIVALS`, interpolated). For a
   family the pair is taken that gains most on all other families. Pebble, which is slow, serves for slopes alone.

Samples and labels are of another seed than those of the table. Finished columns are kept in `--runs`; several
processes may each measure other networks first (`--measure`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from research.frontier.measure import Measured, low
from research.frontier.networks import Network, find_network

NETWORKS = (
    *("digits_epsilon_linear", "animals_epsilon_scaled_linear", "food_v_zero_snr", "animals_edm"),
    *("digits_sample_cosine", "things_flow", "things_flow_distilled", "clips_flow"),
    *("pebble@3", "pebble@7.5", "pebble-dit"),
)
SLOPES = tuple(itertools.product((-0.1, 0.0, 0.1, 0.25, 0.5, 0.8), (0.1, 0.2, 0.3, 0.45)))
PACES = ((0.0, 0.0), (0.2, 0.0), (0.2, 40.0), (0.4, 40.0))
RIVALS = tuple(itertools.product(("unipc", "adams(of='x0')"), ("trailing", "karras", "logsnr", "uniform")))
RIVAL_CALLS = (8, 10, 15, 20, 25)
SEED = 99
MOST = 10.0  # dB that count, of a loss or a gain
Pair = tuple[float, float]


def samples_of(name: str) -> int:
    """How many samples of a network are used to choose on."""
    return 8 if name.startswith("pebble") else 16 if name.startswith("clips") else 32


def kind_of(network: Network) -> str:
    """What the network puts out: eps, v, x0 or flow."""
    return network.backbone().prediction


def closeness(measured: Measured, pair: Pair) -> float:
    """Mean PSNR of a density with 10 and 15 calls: mean of median and p10."""
    values = []
    for calls in (10, 15):
        psnr = measured.column(f"adaptive_grid(calls={calls}, adapt=0.0, bend=0.0, rise={pair[0]}, fall={pair[1]})")[
            "psnr"
        ]
        values += [statistics.median(psnr), low(psnr)]
    return statistics.mean(values)


def gain(measured: Measured, slopes: Pair, pace: Pair) -> float:
    """Mean lead over fixed samplers with as many calls, at the median and in p10."""
    leads = []
    for calls in (8, 10, 15, 20):
        column = measured.column(spec(calls, slopes, pace))
        own = (statistics.median(column["psnr"]), low(column["psnr"]))
        leads += [a - np.interp(column["calls"], RIVAL_CALLS, b) for a, b in zip(own, rivals(measured), strict=True)]
    return float(np.mean(np.clip(leads, -MOST, MOST)))


def rivals(measured: Measured) -> tuple[list[float], list[float]]:
    """The best fixed sampler at each number of calls, at the median and in p10."""
    columns = {n: [measured.column("fixed", *rival, n)["psnr"] for rival in RIVALS] for n in RIVAL_CALLS}
    return (
        [max(statistics.median(values) for values in columns[n]) for n in RIVAL_CALLS],
        [max(low(values) for values in columns[n]) for n in RIVAL_CALLS],
    )


def spec(calls: int, slopes: Pair, pace: Pair) -> str:
    """A policy with these constants."""
    return f"adaptive_grid(calls={calls}, adapt={pace[0]}, bend={pace[1]}, rise={slopes[0]}, fall={slopes[1]})"


def least(scores: Mapping[str, Mapping[Pair, float]], names: Sequence[str]) -> Pair:
    """The pair with the least mean loss on these networks."""
    pairs = list(scores[names[0]])
    return min(pairs, key=lambda p: np.mean([min(MOST, max(scores[n].values()) - scores[n][p]) for n in names]))


def choose_slopes(all_measured: Mapping[str, Measured]) -> dict[str, Pair]:
    """Slopes for each network, its family left out; and for each output, with none left out."""
    scores = {name: {pair: closeness(m, pair) for pair in SLOPES} for name, m in all_measured.items()}
    kinds = {name: kind_of(m.network) for name, m in all_measured.items()}
    families = {name: m.network.family for name, m in all_measured.items()}
    chosen: dict[str, Pair] = {}
    for name in all_measured:
        others = [n for n in all_measured if families[n] != families[name]]
        chosen[name] = least(scores, [n for n in others if kinds[n] == kinds[name]] or others)
    return chosen | {kind: least(scores, [n for n in kinds if kinds[n] == kind]) for kind in set(kinds.values())}


def own_slopes(all_measured: Mapping[str, Measured]) -> dict[str, Pair]:
    """The best slopes on each network itself: what tuning on these samples would give."""
    return {name: max(SLOPES, key=lambda pair, m=m: closeness(m, pair)) for name, m in all_measured.items()}


def choose_paces(all_measured: Mapping[str, Measured], slopes: Mapping[str, Pair]) -> dict[str, Pair]:
    """`adapt` and `bend` for each network, its family left out; and with none left out, as "all"."""
    quick = {name: m for name, m in all_measured.items() if not name.startswith("pebble")}
    gains = {name: {p: gain(m, slopes[name], p) for p in PACES} for name, m in quick.items()}
    families = {name: m.network.family for name, m in all_measured.items()}
    chosen = {}
    for name in all_measured:
        others = [n for n in quick if families[n] != families[name]]
        chosen[name] = max(PACES, key=lambda p: np.mean([gains[n][p] for n in others]))
    return chosen | {"all": max(PACES, key=lambda p: np.mean([gains[n][p] for n in quick]))}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.frontier.choose", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="of the zoo, pebble@3, folders of others")
    parser.add_argument("--measure", choices=("slopes", "rivals"), help="only run these columns, and keep them")
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"), help="keeps finished columns")
    parser.add_argument("--out", type=Path, help="file of what was chosen")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, all_measured = Console(stderr=True), {}
    for name in given.networks:
        network, steps = find_network(name, samples_of(name), SEED), 120 if name.startswith("pebble") else 300
        measured = Measured(network, given.runs / f"{network.name}-{samples_of(name)}-{SEED}.json", steps)
        all_measured[network.name] = measured
        console.print(f"{name}: references agree to {measured.agreement[0]:.0f} / {measured.agreement[1]:.0f} dB")
        if given.measure == "slopes":
            console.print({pair: round(closeness(measured, pair), 1) for pair in SLOPES})
        elif given.measure == "rivals":
            rivals(measured)
    if given.measure:
        return
    slopes = choose_slopes(all_measured)
    found = {"slopes": slopes, "tuned": own_slopes(all_measured), "paces": choose_paces(all_measured, slopes)}
    console.print(found)
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
