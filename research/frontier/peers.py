"""Other ways to save calls on the table's networks: `python -m research.frontier.peers NETWORKS --out peers.md`.

The first 32 of the samples of `table.py` (16 clips), closeness to the same references (DPM-Solver++ alone; `table.md`
says how well another solver confirms it), median / p10 in dB, and the calls made. Rows are numbers of calls; columns:

- default: `adaptive_grid`, its constants chosen with the network's family left out;
- tuned: with the slopes that `skipstone tune --policy adaptive_grid` finds (`tuned.py`); in brackets where it keeps the
  default as it ships, in whose constants the network had a part;
- path: the grid that `skipstone tune` finds, of that many calls;
- stride: of four tolerances the largest p10 with at most as many calls as the default, rounded up;
- error_control on UniPC, 50 steps, of the settings that it is calibrated with the one whose calls are nearest, on eight
  samples of another seed;
- AYS: DPM-Solver++ 2M at the noise levels of diffusers' `AysSchedules`, Stable Diffusion's on networks with a table of
  timesteps, the video model's on EDM, interpolated in log sigma; the first step starts where the network's noise does;
- DeepCache (its package) and TaylorSeer (diffusers), intervals 2 and 3 on UniPC's trailing steps, as many as cost that
  many calls by multiply-accumulates; the better at the median.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console

from research.frontier.choose import SEED, column_of
from research.frontier.command import make_parser
from research.frontier.measure import Measured, low
from research.frontier.networks import Network, find_network, reference_times
from research.frontier.rivals import CLIPS, SAMPLES
from research.frontier.table import CONSTANTS, STRIDES
from research.frontier.tuned import file_of, read_found, tune
from skipstone.engine.drivers import denoise_many
from skipstone.engine.requests import Problem
from skipstone.evaluation.peers import Peer
from skipstone.registry import find_class, parse

COUNT, PILOTS, STEPS = 32, 8, 50
INTERVALS, MOST_STEPS = (2, 3), 60
AYS = {  # sigma / alpha, from noise to data, as diffusers' `AysSchedules` has them, their end as their authors have it
    "table": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "edm": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
COLUMNS = ("default", "tuned", "path", "stride", "error_control", "ays", "deepcache", "taylorseer")
PHASES = ("default", "tuned", "error_control", "ays", "deepcache", "taylorseer", "path", "stride")
Column = Mapping[str, Any]


@dataclass(frozen=True)
class First:
    """The first samples of a network.

    Args:
        network: With all of its samples.
        count: How many are taken.
    """

    network: Network
    count: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def problems(self, times: Sequence[float]) -> list[Problem]:
        """The samples to denoise at these times."""
        return self.network.problems(times)[: self.count]


class NotRun(Exception):
    """A column that has not been run, where columns are only read."""


@dataclass
class Peers(Measured):
    """Columns of a network, its reference by one solver alone.

    Args:
        reads: Whether columns that are not kept raise `NotRun`.
    """

    reads: bool = False

    def column(self, policy: str, solver: str = "", grid: str = "trailing", steps: int = 50) -> dict[str, Any]:
        """PSNR and calls of a column."""
        if self.reads and f"{policy} @ {solver} / {grid} / {steps}" not in self.kept:
            raise NotRun
        return super().column(policy, solver, grid, steps)

    def tuned(self, name: str, runs: Path, kind: str) -> dict[str, Any]:
        """What `skipstone tune` finds."""
        if self.reads and kind not in read_found(file_of(runs, self.network.name)):
            raise NotRun
        found: dict[str, Any] = tune(name, runs, (kind,))[kind]
        return found

    def _references(self) -> tuple[torch.Tensor, list[float]]:
        times = reference_times(self.network.schedule, self.steps)
        return self._draw("fixed", "dpmpp", times)[0], []

    def at(self, name: str, policy: str, solver: str, times: Sequence[float]) -> Column:
        """PSNR and calls at given times, drawn once."""
        return self.once(name, lambda: self._figures(*self._draw(policy, solver, times)))

    def once(self, name: str, draw: Callable[[], dict[str, Any]]) -> Column:
        """A column that is kept by a name."""
        if self.reads and name not in self.kept:
            raise NotRun
        if name not in self.kept:
            self.kept[name] = draw()
            self.file.write_text(json.dumps(self.kept), encoding="utf-8")
        found: Column = self.kept[name]
        return found

    def cached(self, peer: str, steps: int) -> Column:
        """A peer on UniPC's trailing steps; its calls are multiply-accumulates, over those of a full call."""
        with peer_at_work(parse("peer", peer), self.network):
            times = parse("grid", "trailing").times(self.network.schedule, steps)
            return self._figures(self._draw("fixed", "unipc", times)[0], cost_of(self.network, peer, steps))

    def _figures(self, pictures: torch.Tensor, calls: float) -> dict[str, Any]:
        return {"psnr": self.psnr(pictures), "calls": calls}


def measured(name: str, runs: Path, reads: bool = False) -> Peers:
    """A network's columns."""
    clips = name.startswith("clips")
    whole = find_network(name, CLIPS if clips else SAMPLES)
    network: Any = First(whole, CLIPS if clips else COUNT)
    return Peers(network, runs / f"peers-{whole.name}-{network.count}-{whole.seed}.json", reads=reads)


# -- columns --------------------------------------------------------------------------------------


def default(found: Peers, calls: int, runs: Path, name: str) -> Column:
    """The default, its constants chosen with the network's family left out."""
    chosen = json.loads(CONSTANTS.read_text(encoding="utf-8"))["chosen"][found.network.name]
    return column_of(found, chosen, calls)


def tuned(found: Peers, calls: int, runs: Path, name: str) -> Column:
    """What `skipstone tune` writes: slopes that it found, or the default."""
    said = found.tuned(name, runs, "slopes")
    if "refused" in said:
        return {"refused": said["refused"]}
    policy = said["policies"][str(calls)]
    return {**found.column(policy), "is_default": "rise" not in policy}


def path(found: Peers, calls: int, runs: Path, name: str) -> Column:
    """The grid that `skipstone tune` finds."""
    said = found.tuned(name, runs, "grids")
    return {"refused": said["refused"]} if "refused" in said else found.column(said["policies"][str(calls)])


def stride(found: Peers, calls: int, runs: Path, name: str) -> Column:
    """Of `stride` the best in p10 with at most the default's calls, rounded up."""
    most = math.ceil(default(found, calls, runs, name)["calls"] - 1e-9)
    within = [column for policy in STRIDES if (column := found.column(policy))["calls"] <= most]
    return max(within, key=lambda column: low(column["psnr"]), default={"refused": "none makes so few calls"})


def error_control(found: Peers, calls: int, runs: Path, name: str) -> Column:
    """The setting of `error_control` that makes about as many calls."""
    settings = find_class("policy", "error_control").calibration_settings  # type: ignore[attr-defined]  # a Policy
    specs = [f"error_control(tol={s['tol']}, max_skip={s['max_skip']})" for s in settings]
    counts = found.once("calls of error_control", lambda: {spec: calls_of(name, spec) for spec in specs})
    return found.column(min(specs, key=lambda spec: abs(float(counts[spec]) - calls)), "unipc", steps=STEPS)


def calls_of(name: str, policy: str) -> float:
    """Mean calls of a policy on a few samples of another seed."""
    network = find_network(name, PILOTS, SEED)
    times = parse("grid", "trailing").times(network.schedule, STEPS)
    results = denoise_many(
        network.backbone(), network.problems(times), parse("solver", "unipc"), parse("policy", policy)
    )
    return statistics.fmean(r.run.cost for r in results)


def ays(found: Peers, calls: int, runs: Path, name: str) -> Column:
    """DPM-Solver++ 2M at the noise levels that are aligned to Stable Diffusion, or to its video model."""
    whole = find_network(name, 1)
    kind = "edm" if whole.family == "edm" else "table"
    schedule = found.network.schedule
    if not getattr(schedule, "alpha_bars", ()):
        return {"refused": "diffusers has none for flows"}
    levels = [math.log(level) for level in AYS[kind]]
    places = [k * (len(levels) - 1) / calls for k in range(calls)]
    sigmas = [levels[int(p)] + (p % 1) * (levels[min(int(p) + 1, len(levels) - 1)] - levels[int(p)]) for p in places]
    times = [1.0, *(t for level in sigmas[1:] if (t := schedule.time(-level)) < 1.0), 0.0]
    return found.at(f"ays {kind} / {calls}", "fixed", "dpmpp", times)


def best_cached(found: Peers, calls: int, runs: Path, name: str, peer: str) -> Column:
    """The better of two intervals at the median, with as many steps as cost that many calls."""
    if not can_cache(found.network, peer):
        return {"refused": "not its kind of network"}
    columns = []
    for interval in INTERVALS:
        spec = f"{peer}(interval={interval})"
        steps = max(n for n in range(2, MOST_STEPS + 1) if cost_of(found.network, spec, n) <= calls + 0.5)
        columns.append(found.once(f"{spec} / {steps}", partial(found.cached, spec, steps)))
    return max(columns, key=lambda column: statistics.median(column["psnr"]))


# -- caches within the network --------------------------------------------------------------------


def can_cache(network: Any, peer: str) -> bool:
    """Whether a peer knows networks of this kind."""
    core = getattr(network.module, "core", None)
    return hasattr(core, "mid_block") if peer == "deepcache" else hasattr(core, "transformer_blocks")


@contextmanager
def peer_at_work(peer: Peer, network: Any) -> Iterator[None]:
    """A peer put on a copy of a network of the zoo, for one run of a batch whose samples step together."""
    whole, core = network.module.core, copy.deepcopy(network.module.core)
    pipe = SimpleNamespace(scheduler=SimpleNamespace(timesteps=[]), transformer=core)
    pipe.unet = core if hasattr(core, "mid_block") else None
    with peer.install(pipe) as running:
        inner, seen = core.forward, pipe.scheduler.timesteps

        def forward(*args: Any, **kwargs: Any) -> Any:
            if pipe.unet is not None:  # the package looks one timestep up among the scheduler's
                seen.append(args[1][0].item())
                args = (args[0], args[1][0], *args[2:])
            return inner(*args, **kwargs)

        core.forward, network.module.core = forward, core
        try:
            with running({}):
                yield
        finally:
            core.forward, network.module.core = inner, whole


@cache
def shares(network: Any, peer: str) -> tuple[float, ...]:
    """What each of some calls costs under a peer: multiply-accumulates over those of a full call."""
    from torch.utils.flop_counter import FlopCounterMode

    alone = First(network.network, 1)
    backbone, solver, policy = alone.backbone(), parse("solver", "ddim"), parse("policy", "fixed")

    def spent(steps: int) -> float:
        problems = alone.problems(parse("grid", "trailing").times(alone.schedule, steps))
        with FlopCounterMode(display=False) as counter:
            denoise_many(backbone, problems, solver, policy)
        return float(counter.get_total_flops())

    full, found = spent(1), []
    for steps in range(1, 2 * max(INTERVALS) + 4):
        with peer_at_work(parse("peer", peer), alone):
            found.append(spent(steps) / full)
    return tuple(b - a for a, b in zip([0.0, *found[:-1]], found, strict=True))


def cost_of(network: Any, peer: str, steps: int) -> float:
    """What a run of so many steps costs in full calls: what was measured, then repeated."""
    each = shares(network, peer)
    interval = int(peer.rpartition("=")[2].rstrip(")"))
    rows = [each[k] if k < len(each) else each[len(each) - interval + (k - len(each)) % interval] for k in range(steps)]
    return sum(rows)


# -- the table ------------------------------------------------------------------------------------

DRAW: Mapping[str, Callable[[Peers, int, Path, str], Column]] = {
    "default": default,
    "tuned": tuned,
    "path": path,
    "stride": stride,
    "error_control": error_control,
    "ays": ays,
    "deepcache": partial(best_cached, peer="deepcache"),
    "taylorseer": partial(best_cached, peer="taylorseer"),
}


def cell(column: Column | None) -> str:
    """A column's figures."""
    if column is None or "psnr" not in column:
        return "-" if column is not None else ""
    figures = f"{statistics.median(column['psnr']):.1f} / {low(column['psnr']):.1f} ({column['calls']:.1f})"
    return f"[{figures}]" if column.get("is_default") else figures


def table(cells: Mapping[tuple[str, int], Mapping[str, Column]]) -> list[str]:
    """The table as Markdown; columns that did not run are empty, those that cannot are "-"."""
    lines = [f"| network | calls | {' | '.join(COLUMNS)} |", "|---|--:|" + "---|" * len(COLUMNS)]
    for (network, calls), row in cells.items():
        lines.append(f"| {network} | {calls} | {' | '.join(cell(row.get(c)) for c in COLUMNS)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = make_parser("peers", __doc__)
    parser.add_argument("--calls", type=int, nargs="*", default=(10, 15), help="rows of each network")
    parser.add_argument("--only", nargs="*", default=PHASES, help="columns to run")
    parser.add_argument("--read", action="store_true", help="only write the table of what was run")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    find_class("peer", "deepcache")
    console = Console(stderr=True, soft_wrap=True)
    cells: dict[tuple[str, int], dict[str, Column]] = {}
    for name in given.networks:
        found = measured(name, given.runs, given.read)
        for column in given.only:
            for calls in given.calls:
                key = found.network.name, calls
                with suppress(NotRun):
                    cells.setdefault(key, {})[column] = DRAW[column](found, calls, given.runs, name)
                    console.print(*key, column, cell(cells[key][column]), highlight=False)
    lines = table(cells)
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
