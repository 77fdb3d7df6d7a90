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

from skipstone.calibration.ladder import rungs
from skipstone.calibration.samples import drawn
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.engine_subject import Engine
from skipstone.evaluation.json_lines import lines_of, repair
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.references import Shot
from skipstone.metrics import PSNR, SSIM, Sample

HERE = Path(__file__).parent
SCORES, NEAR = HERE / "calibration_scores.jsonl", HERE / "calibration_converged.jsonl"
EXACT, CONFIRMS, CONFIRMED = "fixed @ dpmpp / trailing / 100", "fixed @ unipc / trailing / 70", 24
BATCH = 12
SUBJECT = Engine("pebble", "pebble")
FULL = SUBJECT.admit(parse_column("fixed", *SUBJECT.defaults))
RUNGS = rungs(SUBJECT, SUBJECT.defaults)
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
            calls, latents, pictures = made(chunk, column)
            kept[setting] = latents
            for k, line in enumerate(lines):
                ssim = SSIM().measure(Sample(pictures[k], reference=full[k]))
                line["rungs"][setting] = [calls[k], round(psnr(pictures[k], full[k]), 2), round(ssim, 5)]
        for k, shot in enumerate(chunk):
            np.savez(folder / f"{shot.seed}-rungs.npz", **{name: latents[k] for name, latents in kept.items()})
        write(SCORES, lines)


def converge(folder: Path) -> None:
    """One line for each prompt: {"rungs": {setting: psnr to the converged run}}."""
    import torch

    exact, confirms = (SUBJECT.admit(parse_column(spec, None, None, 1)) for spec in (EXACT, CONFIRMS))
    for n, chunk in enumerate(chunks(NEAR)):
        lines: list[dict[str, Any]] = [{"prompt": s.prompt.text, "rungs": {}} for s in chunk]
        _, _, converged = made(chunk, exact)
        if n * BATCH < CONFIRMED:
            for line, a, b in zip(lines, converged, made(chunk, confirms)[2], strict=True):
                line["agreement"] = round(psnr(a, b), 2)
        for line, shot, reference in zip(lines, chunk, converged, strict=True):
            with np.load(folder / f"{shot.seed}-rungs.npz") as kept:
                pictures = SUBJECT.embedded.decode([torch.from_numpy(kept[name]) for name in COLUMNS])
            near = [round(psnr(picture, reference), 2) for picture in pictures]
            line["rungs"] = dict(zip(COLUMNS, near, strict=True))
        write(NEAR, lines)


def full_runs(shots: list[Shot], folder: Path) -> list[Any]:
    """Pictures of the full runs, whose latents are kept in the folder."""
    import torch

    missing = [shot for shot in shots if not (folder / f"{shot.seed}.npz").is_file()]
    if missing:
        for shot, latent in zip(missing, made(missing, FULL)[1], strict=True):
            np.savez(folder / f"{shot.seed}.npz", full=latent)
    return SUBJECT.embedded.decode([torch.from_numpy(np.load(folder / f"{shot.seed}.npz")["full"]) for shot in shots])


def chunks(path: Path) -> Iterator[list[Shot]]:
    """Samples that the file does not have yet."""
    repair(path)
    done = {line["prompt"] for line in lines_of(path)}
    shots = [Shot(p, drawn(0, "seed", p.text)) for p in load_prompts("pebble", limit=324)]
    missing = [shot for shot in shots if shot.prompt.text not in done]
    for i in range(0, len(missing), BATCH):
        print(f"{len(done) + i} of {len(shots)} prompts", file=sys.stderr, flush=True)
        yield missing[i : i + BATCH]


def made(shots: list[Shot], column: Column) -> tuple[list[float], list[Any], list[Any]]:
    """Calls, latents and pictures."""
    found, _ = SUBJECT.draw([shot.item for shot in shots], column)
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
