"""The original's searches on Pebble, with the calls that they make: python research/agents/oracle_stops.py --limit 16

Best of 8 seeds by the judge, the oracle stop by the judge and by closeness, and the oracle ending, which finishes what
it stops in one to four long steps. Prints a Markdown table; research/agents/oracle_stops.md is one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from skipstone import registry
from skipstone.engine.requests import Problem
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.engine_subject import EngineSubject
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.references import EvaluationSample
from skipstone.tuning.grids import mse_to_psnr
from skipstone_bench.oracle import Utility, best_of, make_scorer, oracle_ending, oracle_stop

STEPS, STRIDE, N = 50, 4, 8
REFERENCE = "fixed @ dpmpp / trailing / 200"
UTILITY = Utility(1.0, 20.0, 60.0)


def column(engine: EngineSubject, spec: str) -> Column:
    """As the engine runs it."""
    return engine.resolve_column(parse_column(spec, *engine.default_sampler))


def format_row(what: str, figures: Sequence[Sequence[float]]) -> str:
    """A line of the table, of means: calls, calls as the original counts, judge, PSNR."""
    means = [statistics.fmean(one) for one in figures]
    return f"| {what} | {' | '.join(f'{m:.{d}f}' for m, d in zip(means, (1, 1, 3, 1), strict=True))} |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", default="pebble", help="a set or a file")
    parser.add_argument("--limit", type=int, default=16)
    arguments = parser.parse_args()
    eval_samples = [
        EvaluationSample(p, k) for k, p in enumerate(load_prompts(arguments.prompts, limit=arguments.limit))
    ]
    engine = EngineSubject("pebble", "pebble")
    judge, items = make_scorer(engine), [eval_sample.request for eval_sample in eval_samples]
    exact = engine.pictures(engine.draw(items, column(engine, REFERENCE))[0])
    ddim = registry.parse("solver", "ddim")
    problems: list[Problem] = [engine.embedded.problem(item.prompt, item.seed, STEPS) for item in items]

    def psnr(s: int, pixels: Any) -> float:
        return mse_to_psnr(float(((pixels - exact[s]) ** 2).mean()))

    def print_row(what: str, pixels: Sequence[Any], calls: Sequence[float], claimed: Sequence[float]) -> None:
        judged = [judge(one, eval_sample.prompt.text) for one, eval_sample in zip(pixels, eval_samples, strict=True)]
        print(format_row(what, [calls, claimed, judged, [psnr(s, one) for s, one in enumerate(pixels)]]), flush=True)

    def decoded(latents: Sequence[Any]) -> Sequence[Any]:
        return engine.embedded.decode(list(latents))

    print("| | calls | as the original counts | judge | PSNR to the converged run, dB |\n|---|---|---|---|---|")
    for spec in (f"fixed @ ddim / {STEPS}", "fixed @ ddim / 20", "fixed @ adams / 14"):
        made, _ = engine.draw(items, column(engine, spec))
        print_row(f"`{spec}`", engine.pictures(made), [m.calls for m in made], [m.calls for m in made])
    best = best_of(engine, eval_samples, column(engine, "fixed @ ddim / 20"), judge, N)
    print_row(f"best of {N} seeds by the judge, `ddim / 20`", *_split(best, lambda b: (b.pixels, b.calls, b.calls)))
    by = {
        "judge": lambda s, pixels, calls: judge(pixels, eval_samples[s].prompt.text),
        "closeness": lambda s, pixels, calls: psnr(s, pixels),
    }
    for name, worth in by.items():
        peaks = oracle_stop(engine.embedded.backbone, problems, ddim, decoded, worth)
        print_row(
            f"oracle stop by the {name}, `ddim / {STEPS}`", *_split(peaks, lambda p: (p.pixels, p.calls, float(p.at)))
        )
    stops = range(2, STEPS, STRIDE)
    spent = 0.0
    for solver in ("ddim", "adams"):
        endings = oracle_ending(
            engine.embedded.backbone,
            problems,
            registry.parse("solver", solver),
            decoded,
            lambda s, pixels, calls: UTILITY(psnr(s, pixels), calls),
            stops,
        )
        print_row(
            f"oracle ending, 1 to 4 long steps, utility of 1 dB a call, `{solver} / {STEPS}`",
            *_split(endings, lambda e: (e.pixels, e.calls, e.calls)),
        )
        spent = statistics.fmean(e.spent for e in endings)
    print(
        f"\nAn oracle ending's search makes {spent:.0f} calls a sample; {len(eval_samples)} samples, {len(stops)} "
        f"stops."
    )


def _split(
    found: Sequence[Any], read: Callable[[Any], tuple[Any, float, float]]
) -> tuple[list[Any], list[float], list[float]]:
    pixels, calls, claimed = zip(*(read(one) for one in found), strict=True)
    return list(pixels), list(calls), list(claimed)


if __name__ == "__main__":
    main()
