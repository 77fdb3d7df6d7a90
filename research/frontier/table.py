"""The frontier's table: `python -m research.frontier.table digits_sample_cosine --out research/frontier/table.md`.

Closeness (PSNR in dB of clipped pictures) to a converged run of 400 steps, at the median and in p10, of policies as
they are shipped and of the best fixed sampler of `rivals.SAMPLERS` on the same samples: with the policy's mean number
of calls, rounded up, the best at the median and the best in p10. Calls are counted by a hook on the network. Finished
columns are kept in `--runs`, so that the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from research.frontier.networks import ZooNetwork
from research.frontier.rivals import SAMPLERS
from skipstone.engine.drivers import denoise_many
from skipstone.errors import SkipstoneError
from skipstone.integrations.torch import CallCounter
from skipstone.registry import parse

REFERENCE_STEPS = 400
POLICIES = (
    *(f"adaptive_grid(calls={calls})" for calls in (8, 10, 15, 20)),
    *(f"stride(tol={tol})" for tol in (0.02, 0.0115, 0.004, 0.0018)),
)
HEAD = (
    "| network | policy | calls | PSNR | best fixed at the median | best fixed in p10 | lead |\n"
    "|---|---|--:|---|---|---|---|"
)


@dataclass
class Measured:
    """Columns of one network: PSNR of each sample and mean calls, kept in a file."""

    network: ZooNetwork
    file: Path
    kept: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file.exists():
            self.kept = json.loads(self.file.read_text(encoding="utf-8"))
        self.reference = self._draw("fixed", "dpmpp", self.network.reference_grid(), REFERENCE_STEPS)[0]
        confirming = self._draw("fixed", "unipc", self.network.reference_grid(), REFERENCE_STEPS // 2)[0]
        self.agreement = statistics.median(self._psnr(confirming))

    def column(self, policy: str, solver: str, grid: str, steps: int) -> dict[str, Any]:
        """PSNR and calls of a column, drawn once."""
        name = f"{policy} @ {solver} / {grid} / {steps}"
        if name not in self.kept:
            try:
                samples, calls = self._draw(policy, solver, grid, steps)
                self.kept[name] = {"psnr": self._psnr(samples), "calls": calls}
            except SkipstoneError as refused:
                self.kept[name] = {"refused": str(refused)}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.kept), encoding="utf-8")
        found: dict[str, Any] = self.kept[name]
        return found

    def _draw(self, policy: str, solver: str, grid: str, steps: int) -> tuple[torch.Tensor, float]:
        rule = parse("policy", policy)
        backbone, problems = self.network.backbone(), self.network.problems(grid, steps)
        with CallCounter(self.network.module) as counter:
            results = denoise_many(backbone, problems, parse("solver", solver or rule.solver), rule)
        pictures = self.network.picture(torch.stack([r.x for r in results]))
        return pictures, counter.rows / backbone.branches / len(problems)

    def _psnr(self, pictures: torch.Tensor) -> list[float]:
        errors = (pictures - self.reference).flatten(1).double().pow(2).mean(1).clamp_min(1e-10)
        return [float(v) for v in 10 * torch.log10(4.0 / errors)]


def low(values: Sequence[float]) -> float:
    """The tenth percentile."""
    return float(np.quantile(values, 0.1))


def best_fixed(measured: Measured, calls: int) -> tuple[tuple[float, str], tuple[float, str]]:
    """The best fixed sampler at the median and the best in p10, each with its name."""
    columns = {f"{solver} / {grid}": measured.column("fixed", solver, grid, calls) for solver, grid in SAMPLERS}
    known = {name: c["psnr"] for name, c in columns.items() if "psnr" in c and all(map(math.isfinite, c["psnr"]))}
    return (
        max((statistics.median(values), name) for name, values in known.items()),
        max((low(values), name) for name, values in known.items()),
    )


def row(measured: Measured, policy: str) -> str:
    """A policy's line of the table."""
    column = measured.column(policy, "", "trailing", 50)
    median, tail, calls = statistics.median(column["psnr"]), low(column["psnr"]), column["calls"]
    (rival, name), (rival_tail, tail_name) = best_fixed(measured, math.ceil(calls))
    return (
        f"| {measured.network.name} | `{policy}` | {calls:.1f} | {median:.1f} / {tail:.1f} | {rival:.1f} ({name}) | "
        f"{rival_tail:.1f} ({tail_name}) | {median - rival:+.1f} / {tail - rival_tail:+.1f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.frontier.table", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("networks", nargs="+", help="folders of research/zoo")
    parser.add_argument("--samples", type=int, default=64, help="of each network")
    parser.add_argument("--policies", nargs="*", default=POLICIES, help="specs")
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"), help="keeps finished columns")
    parser.add_argument("--out", type=Path, help="file of the table; without it, it is only printed")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, lines = Console(stderr=True), [HEAD]
    for name in given.networks:
        measured = Measured(ZooNetwork(name, given.samples), given.runs / f"{name}-{given.samples}.json")
        console.print(f"{name}: two references agree to {measured.agreement:.0f} dB at the median")
        for policy in given.policies:
            lines.append(row(measured, policy))
            console.print(lines[-1])
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
