"""Write calibration_simulation.md: whether calibrated promises are kept where the truth is known. Takes minutes.

python research/calibration/calibration_simulation.py

Settings whose true risk is known exactly, many of them only just too bad, are calibrated again and again; the rate of
broken promises must not exceed 1 - confidence. `--calibrations 200` is quick.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.integrate import trapezoid
from scipy.stats import beta as beta_distribution
from scipy.stats import binomtest, ncx2

from skipstone import registry
from skipstone.calibration.betting import anytime_log_capital
from skipstone.calibration.control import Method, choose_setting
from skipstone.calibration.planning import prompts_needed
from skipstone.calibration.risk import betting_p, binomial_p, hoeffding_bentkus_p
from skipstone.calibration.target import Target
from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Problem
from skipstone.testing.backbones.gaussian import COSINE, Gaussian

Table = list[list[float]]
MARGIN = 1e-3  # by which a setting misses the target that only just misses it
SHARE, MEAN = "ssim >= 0.5 @ 90%", "ssim >= 0.9 @ mean within 0..1"  # alpha = 0.1 in both


@dataclass(frozen=True)
class Scenario:
    """A ladder of settings, from safest to fastest, whose true risks are known."""

    name: str
    target: str
    risks: tuple[float, ...]
    draw: Callable[[np.random.Generator, int], Any]  # (generator, n) -> settings x prompts of values
    n: int = 200
    groups: Callable[[int], list[str]] | None = None
    method: Method = "fixed_sequence"
    costs: tuple[float, ...] = ()
    confidence: float = 0.9

    @property
    def delta(self) -> float:
        return 1 - self.confidence

    def cost(self, index: int) -> float:
        return self.costs[index] if self.costs else 50.0 / (index + 2)


@dataclass(frozen=True)
class SimulationOutcome:
    """What became of many calibrations."""

    runs: int
    accepted: int
    num_broken: int
    excess: float  # mean over accepted of cost / cost of the best setting in hindsight; NaN where there is none
    risk: float  # mean true risk of what was chosen, 0 where nothing was

    @property
    def low(self) -> float:
        """Lower 95 % limit of the rate of broken promises."""
        return (
            0.0
            if not self.num_broken
            else float(beta_distribution.ppf(0.05, self.num_broken, self.runs - self.num_broken + 1))
        )


# -- Distributions ----------------------------------------------------------------------------------


def nested(risks: Sequence[float]) -> Callable[[np.random.Generator, int], Any]:
    """0 or 1: a prompt that fails at one setting fails at all riskier ones."""
    return lambda rng, n: (rng.random(n) < 1 - np.asarray(risks)[:, None]).astype(float)


def separate(risks: Sequence[float]) -> Callable[[np.random.Generator, int], Any]:
    """0 or 1, each setting by itself."""
    return lambda rng, n: (rng.random((len(risks), n)) < 1 - np.asarray(risks)[:, None]).astype(float)


def betas(risks: Sequence[float], weight: float) -> Callable[[np.random.Generator, int], Any]:
    """1 - loss, losses of a beta distribution; the smaller the weight, the wider."""
    r = np.asarray(risks)[:, None]
    return lambda rng, n: 1 - rng.beta(r * weight, (1 - r) * weight, (len(risks), n))


def disasters(risks: Sequence[float], usual: float) -> Callable[[np.random.Generator, int], Any]:
    """1 - loss: nearly always `usual`, rarely 1, so that the mean is the risk."""
    rare = (np.asarray(risks)[:, None] - usual) / (1 - usual)
    return lambda rng, n: 1 - np.where(rng.random((len(risks), n)) < rare, 1.0, usual)


def in_groups(risks: Sequence[Sequence[float]], n: int) -> Callable[[np.random.Generator, int], Any]:
    """0 or 1 with a risk for each setting and group, prompts going round the groups."""
    r = np.asarray(risks)
    return lambda rng, n: (rng.random((len(r), n)) < 1 - r[:, np.arange(n) % r.shape[1]]).astype(float)


def failures_as_nan(draw: Callable[[np.random.Generator, int], Any]) -> Callable[[np.random.Generator, int], Any]:
    """Failures as NaN in place of 0."""

    def drawn(rng: np.random.Generator, n: int) -> Any:
        table = draw(rng, n)
        return np.where(table == 0, np.nan, table)

    return drawn


# -- The exact Gaussian backbone --------------------------------------------------------------------

KINDS, PIXELS, STEPS = 48, 12, 30


@dataclass(frozen=True)
class Kinds(Gaussian):
    """Gaussian data with a mean and a deviation for each row of a batch."""

    def __post_init__(self) -> None:
        """Arrays are in no range of numbers."""


@functools.cache
def gaussian_ladder() -> tuple[Any, Any, tuple[float, ...]]:
    """Error of `interval(every=k)` against the full run, slope * z + offset, for each setting and kind; and the calls.

    A kind of prompt is Gaussian data of one mean and deviation; the solver and the forecasts are linear, so that the
    error of each pixel is an affine function of the noise z it started from. Three noises show both, and that.
    """
    rng = np.random.default_rng(7)
    world = Kinds(rng.normal(0, 1, (KINDS, 1)), rng.uniform(0.2, 1.5, (KINDS, 1)))  # type: ignore[arg-type]
    noises = np.broadcast_to(np.array([0.0, 1.0, 2.0]), (KINDS, 3))
    grid = registry.parse("grid", "uniform").times(COSINE, STEPS)
    solver = registry.parse("solver", "ddim")
    runs = [
        denoise(world, Problem(COSINE, noises.copy(), grid), solver, registry.parse("policy", spec))
        for spec in ("fixed", *(f"interval(every={k}, order=1)" for k in range(2, 10)))
    ]
    errors = np.stack([run.x for run in runs[1:]]) - runs[0].x
    slope, offset = errors[..., 1] - errors[..., 0], errors[..., 0]
    np.testing.assert_allclose(errors[..., 2], 2 * slope + offset, atol=1e-9)
    return slope, offset, tuple(result.run.cost for result in runs[1:])


def meeting(level: float) -> Any:
    """P(psnr >= level) of each setting, exactly: the squared error is a noncentral chi-square."""
    slope, offset, _ = gaussian_ladder()
    allowed = PIXELS * 10 ** (-level / 10)
    return ncx2.cdf(allowed / slope**2, PIXELS, PIXELS * (offset / slope) ** 2).mean(-1)


def mean_psnr() -> Any:
    """E[psnr cut to 0..99] of each setting: the integral of P(psnr >= level)."""
    levels = np.linspace(0, 99, 1981)
    return trapezoid([meeting(level) for level in levels], levels, axis=0)


def gaussian_values(rng: np.random.Generator, n: int) -> Any:
    """psnr of n random prompts at every setting, each prompt with the same noise at all of them."""
    slope, offset, _ = gaussian_ladder()
    kind, z = rng.integers(KINDS, size=n), rng.standard_normal((n, PIXELS))
    errors = slope[:, kind, None] * z + offset[:, kind, None]
    return -10 * np.log10((errors**2).mean(-1))


def gaussian_scenarios() -> Iterator[Scenario]:
    """Levels at which the fourth setting only just misses."""
    low, high = 0.0, 99.0
    for _ in range(60):
        level = (low + high) / 2
        low, high = (level, high) if meeting(level)[3] > 0.9 - MARGIN else (low, level)
    _, _, calls = gaussian_ladder()
    name = "`interval(every=k)` on Gaussian data, psnr"
    risks = tuple(1 - meeting(high))
    yield Scenario(f"{name}, share", f"psnr >= {high} @ 90%", risks, gaussian_values, costs=calls)
    means = mean_psnr()
    target = Target.parse(f"psnr >= {means[3] + 0.01} @ mean")
    risks = tuple(target.loss(m) for m in means)
    yield Scenario(f"{name}, mean", target.spell(), risks, gaussian_values, costs=calls)


# -- The scenarios ----------------------------------------------------------------------------------


def scenarios() -> Iterator[Scenario]:
    """All of them; of each ladder, at least one setting only just misses unless the name says otherwise."""
    bad = 0.1 + MARGIN
    graded = (0.01, 0.02, 0.04, 0.06, 0.08, bad, 0.12, 0.15, 0.2, 0.3)
    cliff = (0.02, *(bad,) * 9)
    wild = (0.02, 0.05, 0.3, 0.04, bad, 0.03, bad, 0.2)
    yield Scenario("shares, graded ladder, nested failures", SHARE, graded, nested(graded))
    yield Scenario("shares, a cliff of nine that just miss", SHARE, cliff, separate(cliff))
    yield Scenario("the same by Holm", SHARE, cliff, separate(cliff), method="holm")
    yield Scenario("shares, the first setting just misses", SHARE, cliff[1:], separate(cliff[1:]))
    near = (0.0101,) * 5
    yield Scenario("shares of 99 %, each just misses", "ssim >= 0.5 @ 99%", near, separate(near), 500)
    strict = "shares, a cliff, confidence 98 %"
    yield Scenario(strict, SHARE, cliff, separate(cliff), confidence=0.98)
    yield Scenario("shares, NaN for failures", SHARE, cliff[1:], failures_as_nan(separate(cliff[1:])))
    yield Scenario("means, beta losses, graded ladder", MEAN, graded, betas(graded, 8))
    yield Scenario("means, beta losses, a cliff", MEAN, cliff, betas(cliff, 3))
    yield Scenario("the same by Holm", MEAN, cliff, betas(cliff, 3), method="holm")
    yield Scenario("means, rare disasters (0.08 or 1), a cliff", MEAN, cliff[1:], disasters(cliff[1:], 0.08))
    yield Scenario("means, losses 0 or 1, a cliff", MEAN, cliff[1:], separate(cliff[1:]))
    parts = ((0.01, 0.01, 0.01), (0.02, 0.01, 0.05), (0.02, 0.02, bad), (bad, 0.01, bad), (0.05, bad, 0.3))
    hidden = tuple(max(row) for row in parts)
    ladder = in_groups(parts, 3)
    yield Scenario("three groups, one breaks where all together meet", SHARE, hidden, ladder, 450, in_three)
    yield Scenario("not monotone: a middle setting is worst", SHARE, wild, separate(wild))
    yield Scenario("the same by Holm", SHARE, wild, separate(wild), method="holm")
    pairs = tuple(10.0 - i // 2 for i in range(len(cliff)))
    yield Scenario("ties: values at the level's edge, costs alike in pairs", SHARE, cliff, edge(cliff), costs=pairs)
    for name, risk in (("all fail", 1.0), ("all pass", 0.0)):
        yield Scenario(name, SHARE, (risk,) * 5, separate((risk,) * 5))
    yield Scenario("5 prompts: too few for anything", SHARE, cliff, separate(cliff), 5)
    yield Scenario("22 prompts: just enough for no failure", SHARE, (bad,) * 5, separate((bad,) * 5), 22)
    yield from gaussian_scenarios()


def in_three(n: int) -> list[str]:
    return ["abc"[i % 3] for i in range(n)]


def edge(risks: Sequence[float]) -> Callable[[np.random.Generator, int], Any]:
    """The level itself, which meets, or the number just below it."""
    draw = separate(risks)
    return lambda rng, n: np.where(draw(rng, n) == 1, 0.5, np.nextafter(0.5, 0))


def expected() -> Iterator[Scenario]:
    """What conformal risk control is for: the mean risk, without a confidence."""
    graded = (0.01, 0.03, 0.06, 0.08, 0.1 + MARGIN, 0.12, 0.15, 0.2)
    wild = (0.02, 0.05, 0.15, 0.04, 0.101, 0.03, 0.12)
    for n in (50, 200):
        yield Scenario("beta losses, graded", MEAN, graded, betas(graded, 8), n, method="conformal")
        yield Scenario("losses 0 or 1, nested", MEAN, graded, nested(graded), n, method="conformal")
        yield Scenario("losses 0 or 1, not monotone", MEAN, wild, separate(wild), n, method="conformal")


# -- Calibrating ------------------------------------------------------------------------------------


def naive(target: Target, table: Table, costs: Sequence[float]) -> int | None:
    """What people do: the cheapest setting whose losses on these prompts meet the target."""
    meets = [i for i, row in enumerate(table) if math.fsum(map(target.loss, row)) <= target.risk * len(row)]
    return min(meets, key=lambda i: costs[i]) if meets else None


def outcome(scenario: Scenario, runs: int, seed: int = 0, rule: str = "ours") -> SimulationOutcome:
    """Calibrate many times on fresh prompts, and compare what is chosen with the truth."""
    target, rng = Target.parse(scenario.target), np.random.default_rng([seed, *scenario.name.encode()])
    costs = [scenario.cost(i) for i in range(len(scenario.risks))]
    safe = [i for i, r in enumerate(scenario.risks) if r <= target.risk]
    best = min((costs[i] for i in safe), default=math.nan)
    groups = scenario.groups(scenario.n) if scenario.groups else None
    delta = None if scenario.method == "conformal" else scenario.delta
    chosen: list[int] = []
    for _ in range(runs):
        table = scenario.draw(rng, scenario.n).tolist()
        if rule == "naive":
            index = naive(target, table, costs)
        else:
            index = choose_setting(target, table, costs, delta, groups, scenario.method).index
        chosen += [] if index is None else [index]
    broken = sum(scenario.risks[i] > target.risk for i in chosen)
    excess = float(np.mean([costs[i] / best for i in chosen])) if chosen else math.nan
    return SimulationOutcome(runs, len(chosen), broken, excess, sum(scenario.risks[i] for i in chosen) / runs)


# -- P-values and the audit -------------------------------------------------------------------------


def at_the_edge() -> dict[str, Callable[[np.random.Generator, int], Any]]:
    """Distributions of a loss whose mean is 0.1 exactly: the hardest of those that must not be accepted."""
    return {
        "0 or 1": lambda rng, n: (rng.random(n) < 0.1).astype(float),
        "beta(0.8, 7.2)": lambda rng, n: rng.beta(0.8, 7.2, n),
        "beta(20, 180)": lambda rng, n: rng.beta(20, 180, n),
        "0.09 or 1": lambda rng, n: np.where(rng.random(n) < 1 / 91, 1.0, 0.09),
        "0 or 0.2": lambda rng, n: np.where(rng.random(n) < 0.5, 0.2, 0.0),
        "always 0.1": lambda rng, n: np.full(n, 0.1),
    }


def better() -> dict[str, Callable[[np.random.Generator, int], Any]]:
    """Distributions of a loss whose mean is 0.06: what should be accepted where 0.1 is allowed."""
    return {
        "0 or 1": lambda rng, n: (rng.random(n) < 0.06).astype(float),
        "beta(0.48, 7.52), deviation 0.08": lambda rng, n: rng.beta(0.48, 7.52, n),
        "beta(12, 188), deviation 0.02": lambda rng, n: rng.beta(12, 188, n),
        "0.05 or 1": lambda rng, n: np.where(rng.random(n) < 1 / 95, 1.0, 0.05),
    }


def p_values(draw: Callable[[np.random.Generator, int], Any], n: int, runs: int) -> dict[str, Any]:
    """p of each test on losses whose mean is the risk allowed."""
    rng = np.random.default_rng(n)
    losses = [draw(rng, n) for _ in range(runs)]
    tests: dict[str, Callable[[Any], float]] = {
        "binomial": lambda x: binomial_p(int(x.sum()), n, 0.1),
        "hoeffding_bentkus": lambda x: hoeffding_bentkus_p(x.tolist(), 0.1),
        "betting": lambda x: betting_p(x.tolist(), 0.1),
    }
    if set(np.unique(losses)) - {0.0, 1.0}:
        del tests["binomial"]
    return {name: np.array([test(x) for x in losses]) for name, test in tests.items()}


def alarms(draw: Callable[[np.random.Generator, int], Any], alpha: float, n: int, runs: int) -> Any:
    """When the audit first raises the alarm, looking after every sample; infinite where it never does up to n."""
    rng, found = np.random.default_rng(0), []
    for start in range(0, runs, 50):
        losses = draw(rng, n * min(50, runs - start)).reshape(-1, n)
        over = anytime_log_capital(losses, alpha) >= math.log(1 / 0.05)
        found += [float(np.argmax(row)) + 1 if row.any() else math.inf for row in over]
    return np.array(found)


# -- The page ---------------------------------------------------------------------------------------


def percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def promises(runs: int) -> str:
    rows = [
        "| scenario | target | prompts | accepted | broken | lower 95 % limit | naive rule: broken | calls / best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for s in scenarios():
        ours, theirs = outcome(s, runs), outcome(s, runs, rule="naive")
        verdict = "" if ours.low <= s.delta else " **broken too often**"
        rows.append(
            f"| {s.name} | {rounded(s.target)} | {s.n} | {percent(ours.accepted / runs)} | "
            f"{percent(ours.num_broken / runs)} | {percent(ours.low)}{verdict} | {percent(theirs.num_broken / runs)} | "
            f"{'-' if math.isnan(ours.excess) else f'{ours.excess:.2f}'} |"
        )
        print(rows[-1], flush=True)
    return "\n".join(rows)


def rounded(target: str) -> str:
    found = Target.parse(target)
    return replace(found, level=round(found.level, 2)).spell()


def expectations(runs: int) -> str:
    rows = ["| scenario | prompts | chosen | mean true risk | allowed | broken by this calibration |"]
    rows.append("|---|---|---|---|---|---|")
    for s in expected():
        o = outcome(s, runs)
        rows.append(
            f"| {s.name} | {s.n} | {percent(o.accepted / runs)} | {o.risk:.4f} | {Target.parse(s.target).risk:g} | "
            f"{percent(o.num_broken / runs)} |"
        )
    return "\n".join(rows)


def validity(runs: int) -> str:
    rows = ["| losses of mean 0.1 | test | n | p <= 0.01 | p <= 0.05 | p <= 0.1 |", "|---|---|---|---|---|---|"]
    for name, draw in at_the_edge().items():
        for n in (20, 200):
            for test, p in p_values(draw, n, runs).items():
                rates = " | ".join(percent(float((p <= u).mean())) for u in (0.01, 0.05, 0.1))
                rows.append(f"| {name} | {test} | {n} | {rates} |")
    return "\n".join(rows)


def power(runs: int) -> str:
    rows = ["| losses of mean 0.06 | test | n = 50 | n = 100 | n = 200 | n = 400 |", "|---|---|---|---|---|---|"]
    for name, draw in better().items():
        found = [p_values(draw, n, runs) for n in (50, 100, 200, 400)]
        for test in found[0]:
            rates = " | ".join(percent(float((p[test] <= 0.1).mean())) for p in found)
            rows.append(f"| {name} | {test} | {rates} |")
    return "\n".join(rows)


def prices() -> str:
    """What promises cost in prompts: the table of docs/calibration_theory.md."""
    rows = [
        "| target | confidence | at least | likely from | for a setting that | 4 groups: at least | 4 groups: likely |",
        "|---|---|---|---|---|---|---|",
    ]
    asked: list[tuple[str, float | None, float | None]] = [
        ("psnr >= 30 @ 80%", None, None),
        ("psnr >= 30 @ 90%", None, None),
        ("psnr >= 30 @ 95%", None, None),
        ("psnr >= 30 @ 99%", None, None),
        ("psnr >= 30 @ mean", 1.0, 4.0),
        ("ssim >= 0.95 @ mean", 0.02, 0.03),
        ("ssim >= 0.95 @ mean within 0..1", 0.02, 0.03),
        ("lpips <= 0.1 @ mean within 0..1", 0.04, 0.05),
    ]
    for text, slack, deviation in asked:
        target = Target.parse(text)
        for confidence in (0.9, 0.95):
            one = prompts_needed(target, confidence, slack, deviation)
            four = prompts_needed(target, confidence, slack, deviation, groups=4)
            if one.deviation is None:
                setting = f"meets for {percent(1 - target.risk + one.slack)}"
            else:
                setting = f"is better by {one.slack:g}, deviation {one.deviation:g}"
            said = " | ".join(map(str, (one.fewest, one.likely, setting, four.fewest, four.likely)))
            rows.append(f"| `{text}` | {confidence:.0%} | {said} |")
    return "\n".join(rows)


def audits(runs: int) -> str:
    rows = ["| losses | allowed | true risk | alarm within 2,000 | median samples until it |", "|---|---|---|---|---|"]
    for alpha in (0.1, 0.05):
        for times in (0.5, 1.0, 1.5, 2.0, 4.0):
            for name, draw in (
                ("0 or 1", lambda rng, n, r=alpha * times: (rng.random(n) < r).astype(float)),
                ("beta", lambda rng, n, r=alpha * times: rng.beta(8 * r, 8 * (1 - r), n)),
            ):
                when = alarms(draw, alpha, 2000, runs)
                raised = np.isfinite(when)
                said = f"{np.median(when):.0f}" if raised.mean() > 0.5 else "-"
                rows.append(f"| {name} | {alpha:g} | {alpha * times:g} | {percent(raised.mean())} | {said} |")
    return "\n".join(rows)


def page(runs: int) -> str:
    limit = binomtest(round(0.1 * runs), runs).proportion_ci(0.9).high
    return f"""# Are calibrated promises kept?

Made by `python research/calibration/calibration_simulation.py --calibrations {runs}`: {runs:,} calibrations
of each scenario, all seeds fixed. The true risk of every setting is known exactly, so that a broken promise can be
counted: a setting was chosen whose true risk is above what the target allows. With confidence 90 %
(where no other is said) at most 10 % of the promises may be broken; a scenario fails where the lower 95 % limit of its
rate is above that (at a rate of 10 %,
rates up to about {percent(limit)} are seen). "Just misses" is a risk of {0.1 + MARGIN:g} where 0.1 is allowed: the
hardest case, in which every acceptance is a broken promise. The naive rule takes the cheapest setting whose losses on
the calibration prompts meet the target. "calls / best" is what the chosen setting costs against the best one in
hindsight, in the mean of those accepted.

## Learn then Test

{promises(runs)}

## Conformal risk control

Promises the mean over calibrations only: the mean true risk must not exceed what is allowed, while a single calibration
breaks the target as often as the last column says. Where nothing is chosen the risk counts as 0.

{expectations(runs)}

## P-values where the target is only just met

A valid p is at most u with chance u at most. Losses have the mean 0.1 exactly, {10 * runs:,} draws each.

{validity(10 * runs)}

## What the tests can do

How often a risk of 0.06 is accepted where 0.1 is allowed, with confidence 90 %, {runs:,} draws each. Fractions are
tested by `binomial`, means by `betting`: the two were fixed before any loss is seen, and never the better one taken.

{power(runs)}

## The audit

The alarm is raised when the e-value reaches 20 (5 %), looking after *every* sample: {runs:,} runs of 2,000 samples.
Where the true risk is at most what is allowed, at most 5 % of the runs may ever raise it.

{audits(runs)}
"""


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    asked.add_argument("--calibrations", type=int, default=1000)
    text = page(asked.parse_args().calibrations)
    (Path(__file__).parent / "calibration_simulation.md").write_text(text, encoding="utf-8")
    print(text)
