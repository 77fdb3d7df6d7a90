"""Does refining beat more steps? `python research/agents/refine.py` writes research/agents/refine.md and refine.json.

(a) Planted defects: at some half log-SNR a patch of 3 x 3 cells of the latent is replaced, by noise or by what another
picture has there, and the run is finished with so many calls: all of them steps, or some of them a refinement at the
first step, of the true patch or of where the map of attention says. (b) Ordinary runs of the same prompts. All arms of
a table make the same number of calls, counted by a hook on the network; errors are to the undamaged picture of the same
seed by many more calls.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipstone import registry
from skipstone.engine.contracts import ATTENTION
from skipstone.engine.drivers import denoise_many
from skipstone.engine.requests import Estimate, Problem, Query, Result
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.statistics import compare_paired
from skipstone.integrations.torch import CallCounter
from skipstone.metrics import PSNR, Sample
from skipstone.numerics.noise import standard_normal
from skipstone_pebble.model import Pebble

PATCH = "patch"  # in a sample's condition: where it was damaged
SIDE = 3
EARLY, FULL = 20, 50  # calls up to the damage, and of the undamaged run after it
EARLIER = 4  # calls that an ordinary run has beyond those of one that starts at the damage
BATCH = 24
MEASURES = {"psnr": "PSNR, dB", "judge": "judge", "inside": "inside, dB", "outside": "outside, dB"}


class KnownDefectBackbone:
    """Pebble, with the true place of the damage in place of its map of attention."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.schedule, self.sites, self.branches = inner, inner.schedule, inner.sites, inner.branches

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        bare = [dataclasses.replace(q, wanted_sites=q.wanted_sites - {ATTENTION}) for q in queries]
        made = self.inner.predict(bare)
        return [
            dataclasses.replace(e, features={**e.features, ATTENTION: q.cond[PATCH]})
            if ATTENTION in q.wanted_sites
            else e
            for q, e in zip(queries, made, strict=True)
        ]


@dataclass(frozen=True)
class Arm:
    """One way of spending the calls.

    Args:
        name: In the table.
        refine: Spec of the refinement, or nothing.
        steps: Its calls.
        knows_defect: Whether it is given the place of the damage.
    """

    name: str
    refine: str = "fixed"
    steps: int = 0
    knows_defect: bool = False


def arms(at: float, steps: int, back: float, planted: bool) -> list[Arm]:
    """More steps, and the ways to refine in their place."""
    common = f"at={at}, steps={steps}, back={back}"
    told = [Arm("refine, told where", f"refine({common})", steps, True)] if planted else []
    return [
        Arm("more steps"),
        *told,
        Arm("refine the objects (attention > 0.5)", f"refine({common})", steps),
        Arm("refine the ground (attention < 0.5)", f"refine({common}, below=True)", steps),
    ]


@dataclass(frozen=True)
class RefineBench:
    """The model, its samples and what their undamaged pictures are."""

    model: Pebble
    ids: list[str]
    prompts: list[str]
    starts: list[Problem]  # half-way, not damaged
    masks: list[torch.Tensor]
    truth: list[torch.Tensor]  # latents

    @classmethod
    def of(cls, model: Pebble, prompts: int, seeds: int, clock: float) -> RefineBench:
        """Run up to the half log-SNR where the damage is done, and to the undamaged end."""
        chosen = [(p, s) for p in load_prompts("pebble-tuning", limit=prompts, seed=1) for s in range(seeds)]
        problems = [model.problem(p.text, 4000 + s, 1) for p, s in chosen]
        half = model.schedule.time(clock)
        early = [dataclasses.replace(p, grid=even(p.grid[0], half, EARLY)) for p in problems]
        middle = run(model, model.backbone, early, "fixed")
        starts = [
            dataclasses.replace(p, x=r.x, grid=even(half, p.grid[-1], FULL))
            for p, r in zip(problems, middle, strict=True)
        ]
        truth = [r.x for r in run(model, model.backbone, starts, "fixed")]
        rng = np.random.default_rng(7)
        size = problems[0].x.shape[-1]
        masks = []
        for _ in problems:
            row, column = (int(v) for v in rng.integers(1, size - SIDE, 2))
            mask = torch.zeros(size, size)
            mask[row : row + SIDE, column : column + SIDE] = 1.0
            masks.append(mask)
        return cls(model, [f"{p.id}:{s}" for p, s in chosen], [p.text for p, _ in chosen], starts, masks, truth)

    def damage(self, kind: str) -> list[Problem]:
        """The samples half-way, each with its patch replaced."""
        found = []
        for i, (p, mask) in enumerate(zip(self.starts, self.masks, strict=True)):
            other = self.starts[(i + len(self.starts) // 2) % len(self.starts)].x
            new = standard_normal(i, 99, p.x) * float(p.x.std()) if kind == "noise" else other
            found.append(dataclasses.replace(p, x=torch.where(mask > 0, new, p.x), cond={**p.cond, PATCH: mask}))
        return found

    def attention_maps(self, problems: Sequence[Problem]) -> list[torch.Tensor]:
        """Maps of attention."""
        asked = [Query(p.x, p.grid[0], p.cond, wanted_sites=frozenset({ATTENTION})) for p in problems]
        return [e.features[ATTENTION] for e in self.model.backbone.predict(asked)]

    def attention_row(self, kind: str) -> str:
        """A row of what the map says of the damage: AUROC of damaged cells against the others, and the IoU."""
        before, after = self.attention_maps(self.starts), self.attention_maps(self.damage(kind))
        scores = [statistics.fmean(auroc(m, mask) for m, mask in zip(maps, self.masks, strict=True))
                  for maps in (before, after)]  # fmt: skip
        overlaps = [
            float(((m > 0.5) & (mask > 0)).sum() / ((m > 0.5) | (mask > 0)).sum())
            for m, mask in zip(after, self.masks, strict=True)
        ]
        share = statistics.fmean(float((m > 0.5).float().mean()) for m in after)
        return f"| {kind} | {scores[0]:.3f} | {scores[1]:.3f} | {share:.0%} | {statistics.fmean(overlaps):.2f} |"

    def scores(self, results: Sequence[Result]) -> dict[str, dict[str, float]]:
        """Of each measure, sample -> score, more being better."""
        judge, psnr = self.model.judge, PSNR()
        pictures, truth = self.model.decode([r.x for r in results]), self.model.decode(self.truth)
        found: dict[str, dict[str, float]] = {m: {} for m in MEASURES}
        for i, (sample, r) in enumerate(zip(self.ids, results, strict=True)):
            error = (r.x - self.truth[i]) ** 2
            mask = self.masks[i] > 0
            found["psnr"][sample] = min(60.0, psnr.measure(Sample(pictures[i], "", 0.0, truth[i], None)))
            found["judge"][sample] = math.nan if judge is None else judge(pictures[i], self.prompts[i])
            found["inside"][sample] = -10 * math.log10(float(error[:, mask].mean()) + 1e-9)
            found["outside"][sample] = -10 * math.log10(float(error[:, ~mask].mean()) + 1e-9)
        return found


def auroc(values: torch.Tensor, mask: torch.Tensor) -> float:
    """Probability that a marked cell has a higher value than one that is not."""
    inside, outside = values[mask > 0][:, None], values[mask == 0][None]
    return float(((inside > outside).float() + 0.5 * (inside == outside).float()).mean())


def even(start: float, end: float, steps: int) -> tuple[float, ...]:
    """Times in equal steps."""
    return (*(start + (end - start) * k / steps for k in range(steps)), end)


def run(model: Pebble, backbone: Any, problems: Sequence[Problem], policy: str) -> list[Result]:
    """The samples, denoised by `adams`; counts by a hook what entered the network."""
    solver, chosen = registry.parse("solver", "adams"), registry.parse("policy", policy)
    results: list[Result] = []
    for k in range(0, len(problems), BATCH):
        with CallCounter(model.unet) as counter:
            made = denoise_many(backbone, problems[k : k + BATCH], solver, chosen)
        assert counter.rows == sum(r.run.cost for r in made) * model.backbone.branches
        results += made
    return results


def compare(bench: RefineBench, problems: Sequence[Problem], calls: int, choices: Sequence[Arm]) -> dict[str, Any]:
    """Scores of each arm at so many calls."""
    found = {}
    for arm in choices:
        grids = [even(p.grid[0], p.grid[-1], calls - arm.steps) for p in problems]
        batch = [dataclasses.replace(p, grid=g) for p, g in zip(problems, grids, strict=True)]
        backbone = KnownDefectBackbone(bench.model.backbone) if arm.knows_defect else bench.model.backbone
        results = run(bench.model, backbone, batch, arm.refine)
        empty = [i for i, r in enumerate(results) if r.run.cost < calls]  # nothing to refine: more steps there
        if empty:
            again = [dataclasses.replace(problems[i], grid=even(problems[i].grid[0], 0.0, calls)) for i in empty]
            for i, r in zip(empty, run(bench.model, bench.model.backbone, again, "fixed"), strict=True):
                results[i] = r
        found[arm.name] = bench.scores(results)
    return found


def row(name: str, mine: Mapping[str, Mapping[str, float]], steps: Mapping[str, Mapping[str, float]]) -> str:
    """An arm of the table: means, and the difference to more steps with its interval."""
    cells = []
    for measure in MEASURES:
        values = list(mine[measure].values())
        cell = f"{sum(values) / len(values):.3f}" if measure == "judge" else f"{sum(values) / len(values):.2f}"
        if mine is not steps:
            test = compare_paired(mine[measure], steps[measure])
            cell += f" ({test.mean.low:+.2g} to {test.mean.high:+.2g})"
        cells.append(cell)
    return f"| {name} | {' | '.join(cells)} |"


def table(title: str, found: Mapping[str, Any]) -> list[str]:
    """One comparison in Markdown."""
    head = [f"\n### {title}\n", f"| arm | {' | '.join(MEASURES.values())} |", "|---|" + "---|" * len(MEASURES)]
    return [*head, *(row(name, mine, found["more steps"]) for name, mine in found.items())]


def verdict(rows: Mapping[str, Any]) -> list[str]:
    """Which arms beat more steps by which measure: where the 95 % interval of the mean difference lies above 0."""
    lines = []
    for arm in dict.fromkeys(name for found in rows.values() for name in found if name != "more steps"):
        for part in ("planted", "ordinary"):
            tests = [
                compare_paired(found[arm][measure], found["more steps"][measure])
                for title, found in rows.items()
                for measure in ("psnr", "judge")
                if title.startswith(part) and arm in found
            ]
            if tests:
                better, worse = sum(t.mean.low > 0 for t in tests), sum(t.mean.high < 0 for t in tests)
                lines.append(f"| {arm} | {part} | {better} | {worse} | {len(tests) - better - worse} |")
    head = [
        "\n### Verdict\n",
        "Comparisons, by PSNR and by the judge, that the arm wins against more steps, loses, or neither:",
    ]
    return [*head, "\n| arm | runs | better | worse | neither |", "|---|---|---|---|---|", *lines]


def measure_all(given: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Lines of all tables, and the scores of single samples."""
    model = Pebble.load(given.model)
    lines: list[str] = []
    shown: list[str] = []
    rows: dict[str, Any] = {}
    for clock in given.clocks:
        bench = RefineBench.of(model, given.prompts, given.seeds, clock)
        for kind in ("noise", "other picture"):
            title = f"planted {kind} at half log-SNR {clock:g}, {given.calls} calls from there on"
            shown.append(bench.attention_row(kind).replace(kind, f"{kind}, at {clock:g}", 1))
            rows[title] = compare(bench, bench.damage(kind), given.calls, arms(-99.0, given.steps, given.back, True))
            lines += table(title, rows[title])
            print("\n".join(lines[-8:]), flush=True)
    whole = [dataclasses.replace(p, x=standard_normal(p.seed, 0, p.x), grid=(1.0, p.grid[-1])) for p in bench.starts]
    for calls in (given.calls + EARLIER, 2 * given.calls):
        title = f"ordinary runs, {calls} calls"
        rows[title] = compare(bench, whole, calls, arms(0.0, given.steps, given.back, False))
        lines += table(title, rows[title])
        print("\n".join(lines[-7:]), flush=True)
    head = [
        "\n### Does the map of attention show the defect?\n",
        "AUROC of the cells of the patch by the words' share of attention, before and after the damage (before, it is",
        "only that patches and objects both lie near the middle); share of cells above 0.5, their IoU with the patch.",
        "\n| defect | before | after | marked | IoU |",
        "|---|---|---|---|---|",
    ]
    return [*verdict(rows), *head, *shown, *lines], rows


def round_scores(rows: Any) -> Any:
    """Scores with four digits after the point; what is no number is null."""
    if isinstance(rows, dict):
        return {k: round_scores(v) for k, v in rows.items()}
    return round(rows, 4) if math.isfinite(rows) else None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pebble")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--clocks", type=float, nargs="*", default=[0.0, 1.0, 2.0])
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--back", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    lines, rows = measure_all(given)
    options = " ".join(f"--{k} {' '.join(f'{v:g}' for v in (x if isinstance(x, list) else [x]))}"
                       for k, x in vars(given).items() if k not in ("out", "model"))  # fmt: skip
    head = [
        f"# Refining a region against more steps, on {given.model}\n",
        f"Made by `python research/agents/refine.py --model {given.model} {options}` with the solver `adams`.",
        f"A refinement takes {given.steps} of the calls. Means over {given.prompts * given.seeds} samples of",
        "`pebble-tuning`; in brackets the 95 % interval (bootstrap over prompts) of the mean difference to more steps.",
        "PSNR and the errors inside and outside of the patch (latents) are to the undamaged picture.",
    ]
    given.out.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    text = json.dumps(round_scores(rows), separators=(",", ":"))
    given.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
