"""Are promises kept on a real model? Pebble's 324 test prompts, every rung drawn once, calibrated on again and again.

    python research/calibration/calibration.py draw FOLDER       # a quarter of an hour; latents go into FOLDER
    python research/calibration/calibration.py converged FOLDER  # the converged runs, and how near those are
    python research/calibration/calibration_splits.py            # minutes: the calibrations, from committed scores

The first two go on where they were cut off.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from skipstone.calibration.candidates import candidates
from skipstone.calibration.prompt_split import hashed_seed
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.engine_subject import EngineSubject
from skipstone.evaluation.json_lines import read_lines, repair_lines
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.references import EvaluationSample
from skipstone.metrics import PSNR, SSIM, Sample

HERE = Path(__file__).parent
SCORES, CONVERGED_SCORES = HERE / "calibration_scores.jsonl", HERE / "calibration_converged.jsonl"
EXACT, CONFIRMING, NUM_CONFIRMED = "fixed @ dpmpp / trailing / 100", "fixed @ unipc / trailing / 70", 24
BATCH = 12
SUBJECT = EngineSubject("pebble", "pebble")
FULL = SUBJECT.resolve_column(parse_column("fixed", *SUBJECT.default_sampler))
RUNGS = candidates(SUBJECT, SUBJECT.default_sampler)
COLUMNS = {r.column.spec.partition(" @ ")[0]: r.column for r in RUNGS}


def draw(folder: Path) -> None:
    """One line for each prompt: {"rungs": {setting: [calls, psnr, ssim]}}, against the full run."""
    for chunk in chunks(SCORES):
        lines: list[dict[str, Any]] = [
            {"prompt": s.prompt.text, "category": s.prompt.category, "seed": s.seed, "rungs": {}} for s in chunk
        ]
        full = full_runs(chunk, folder)
        kept: dict[str, list[Any]] = {}
        for setting, column in COLUMNS.items():
            calls, latents, pictures = draw_samples(chunk, column)
            kept[setting] = latents
            for k, line in enumerate(lines):
                ssim = SSIM().measure(Sample(pictures[k], reference=full[k]))
                line["rungs"][setting] = [calls[k], round(psnr(pictures[k], full[k]), 2), round(ssim, 5)]
        for k, eval_sample in enumerate(chunk):
            np.savez(folder / f"{eval_sample.seed}-rungs.npz", **{name: latents[k] for name, latents in kept.items()})
        write(SCORES, lines)


def converge(folder: Path) -> None:
    """One line for each prompt: {"rungs": {setting: psnr to the converged run}}."""
    import torch

    exact, confirms = (SUBJECT.resolve_column(parse_column(spec, None, None, 1)) for spec in (EXACT, CONFIRMING))
    for n, chunk in enumerate(chunks(CONVERGED_SCORES)):
        lines: list[dict[str, Any]] = [{"prompt": s.prompt.text, "rungs": {}} for s in chunk]
        _, _, converged = draw_samples(chunk, exact)
        if n * BATCH < NUM_CONFIRMED:
            for line, a, b in zip(lines, converged, draw_samples(chunk, confirms)[2], strict=True):
                line["agreement"] = round(psnr(a, b), 2)
        for line, eval_sample, reference in zip(lines, chunk, converged, strict=True):
            with np.load(folder / f"{eval_sample.seed}-rungs.npz") as kept:
                pictures = SUBJECT.embedded.decode([torch.from_numpy(kept[name]) for name in COLUMNS])
            near = [round(psnr(picture, reference), 2) for picture in pictures]
            line["rungs"] = dict(zip(COLUMNS, near, strict=True))
        write(CONVERGED_SCORES, lines)


def full_runs(eval_samples: list[EvaluationSample], folder: Path) -> list[Any]:
    """Pictures of the full runs, whose latents are kept in the folder."""
    import torch

    missing = [eval_sample for eval_sample in eval_samples if not (folder / f"{eval_sample.seed}.npz").is_file()]
    if missing:
        for eval_sample, latent in zip(missing, draw_samples(missing, FULL)[1], strict=True):
            np.savez(folder / f"{eval_sample.seed}.npz", full=latent)
    return SUBJECT.embedded.decode(
        [torch.from_numpy(np.load(folder / f"{eval_sample.seed}.npz")["full"]) for eval_sample in eval_samples]
    )


def chunks(path: Path) -> Iterator[list[EvaluationSample]]:
    """Samples that the file does not have yet."""
    repair_lines(path)
    done = {line["prompt"] for line in read_lines(path)}
    eval_samples = [EvaluationSample(p, hashed_seed(0, "seed", p.text)) for p in load_prompts("pebble", limit=324)]
    missing = [eval_sample for eval_sample in eval_samples if eval_sample.prompt.text not in done]
    for i in range(0, len(missing), BATCH):
        print(f"{len(done) + i} of {len(eval_samples)} prompts", file=sys.stderr, flush=True)
        yield missing[i : i + BATCH]


def draw_samples(eval_samples: list[EvaluationSample], column: Column) -> tuple[list[float], list[Any], list[Any]]:
    """Calls, latents and pictures."""
    found, _ = SUBJECT.draw([eval_sample.request for eval_sample in eval_samples], column)
    return [one.calls for one in found], [one.latent for one in found], SUBJECT.pictures(found)


def psnr(a: Any, b: Any) -> float:
    """In dB, 99 of identical pictures."""
    return min(99.0, PSNR().measure(Sample(a, reference=b)))


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add lines to a file."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["draw", folder]:
            draw(Path(folder))
        case ["converged", folder]:
            converge(Path(folder))
        case _:
            sys.exit(__doc__)
