"""Measure a Pebble by its judge: `python -m skipstone_pebble.recipe.evaluate --out research/pebble`.

Draws every withheld prompt (216 of one object, 252 of two) with 50 steps (DDIM, or Euler along a flow) and
guidance, reads the pictures, and writes `judge.json` (figures and every reading) and a sheet of pictures of each kind.
`--by-eye` draws 100 of them for labelling by eye: sheets and prompts, without the readings. `--agree LABELS`
compares such labels with the judge: a JSON list of [objects, background] for each picture in order, the left
or upper object first, and [] for a picture in which nothing can be recognised.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import MANIFEST
from ..family import Network
from ..judge import Judge, check_facts
from ..model import Pebble, find_model
from ..scenes import withheld_prompts
from . import sampling

#: What the issue asks for, and below what it fails.
TARGETS = {"object": (0.85, 0.60), "both objects": (0.55, 0.30), "background": (0.95, 0.85)}


def draw(
    model: Pebble, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, side: int = 64
) -> NDArray[np.uint8]:
    """Pictures (N, side, side, 3) uint8 of the prompts, 36 at a time."""
    network, parts = Network(model.unet, model.encoder, model.tokenizer), []
    with torch.inference_mode():
        for start in range(0, len(prompts), 36):
            chunk = slice(start, start + 36)
            noise = sampling.initial_noise(seeds[chunk], side)
            latents = sampling.sample_latents(model.family, network, prompts[chunk], noise, steps, guidance)
            parts.append(sampling.decode(model.autoencoder, latents))
    return np.concatenate(parts)


def _share(marks: list[dict[str, bool]], names: Sequence[str]) -> float:
    """Fraction of the pictures in which all the named facts hold."""
    return float(np.mean([all(mark[name] for name in names) for mark in marks]))


def figures(single: list[dict[str, bool]], pair: list[dict[str, bool]]) -> dict[str, float]:
    """The bars and their parts from the facts kept by each picture."""
    sized = [mark for mark in single if "size" in mark]
    return {
        "object": _share(single, ["object"]),
        "both objects": _share(pair, ["first", "second"]),
        "both objects in place": _share(pair, ["relation"]),
        "background": _share([*single, *pair], ["background"]),
        "background, one object": _share(single, ["background"]),
        "background, two objects": _share(pair, ["background"]),
        "size": _share(sized, ["size"]),
        "every fact, one object": float(np.mean([all(mark.values()) for mark in single])),
        "every fact, two objects": float(np.mean([all(mark.values()) for mark in pair])),
    }


def evaluate(model: Pebble, judge: Judge, out: Path, steps: int, guidance: float, seed: int) -> dict[str, Any]:
    """Draw and read all withheld prompts; write the sheets; returns what `judge.json` holds."""
    began = time.perf_counter()
    marks: dict[str, list[dict[str, bool]]] = {}
    rows: list[dict[str, Any]] = []
    for kind in ("single", "pair"):
        prompts = withheld_prompts(kind)
        seeds = [seed + index for index in range(len(prompts))]
        pictures = draw(model, prompts, seeds, steps, guidance)
        readings = judge.read(pictures)
        marks[kind] = [check_facts(reading, prompt) for reading, prompt in zip(readings, prompts, strict=True)]
        for prompt, at, reading, mark in zip(prompts, seeds, readings, marks[kind], strict=True):
            seen = {"objects": reading.objects, "positions": reading.positions, "background": reading.background}
            rows.append({"prompt": prompt, "seed": at, **seen, "size": reading.size, "facts": mark})
        some = np.linspace(0, len(prompts) - 1, 48).astype(int)
        sampling.save_sheet(pictures[some], out / f"{kind}.png", columns=12)
    seconds = time.perf_counter() - began
    return {
        "command": f"python -m skipstone_pebble.recipe.evaluate --steps {steps} --guidance {guidance} --seed {seed}",
        "prompts": {kind: len(found) for kind, found in marks.items()},
        "figures": figures(marks["single"], marks["pair"]),
        "bars": {name: {"bar": bar, "floor": floor} for name, (bar, floor) in TARGETS.items()},
        "seconds": round(seconds, 1),
        "readings": rows,
    }


def draw_for_labelling(model: Pebble, out: Path, steps: int, guidance: float, seed: int) -> None:
    """Draw 50 + 50 withheld prompts for labelling by eye: `by_eye_*.png`, `by_eye.npz`, `by_eye_prompts.json`."""
    rng = random.Random(seed)
    prompts = rng.sample(withheld_prompts("single"), 50) + rng.sample(withheld_prompts("pair"), 50)
    rng.shuffle(prompts)
    seeds = [100_000 + seed + index for index in range(100)]
    pictures = draw(model, prompts, seeds, steps, guidance)
    np.savez_compressed(out / "by_eye.npz", pictures=pictures)
    for part in range(4):
        sampling.save_sheet(pictures[25 * part : 25 * part + 25], out / f"by_eye_{part}.png", columns=5, zoom=3)
    rows = [{"prompt": prompt, "seed": at} for prompt, at in zip(prompts, seeds, strict=True)]
    (out / "by_eye_prompts.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def compare_with_labels(judge: Judge, out: Path, labels: Path) -> dict[str, Any]:
    """Compare labels made by eye with the judge's readings of the same pictures."""
    with np.load(out / "by_eye.npz") as stored:
        readings = judge.read(stored["pictures"])
    prompts = json.loads((out / "by_eye_prompts.json").read_text(encoding="utf-8"))
    seen = json.loads(labels.read_text(encoding="utf-8"))
    rows = []
    for row, label, reading in zip(prompts, seen, readings, strict=True):
        read = [list(reading.objects), reading.background]
        rows.append({**row, "by eye": label, "judge": read, "agree": read == label})
    shares = {
        "agree": float(np.mean([row["agree"] for row in rows])),
        "agree on background": float(np.mean([row["by eye"][1:] == row["judge"][1:] for row in rows])),
        "agree on objects": float(np.mean([row["by eye"][:1] == row["judge"][:1] for row in rows])),
        "agree on objects in any order": float(
            np.mean([sorted((row["by eye"] or [[]])[0]) == sorted(row["judge"][0]) for row in rows])
        ),
    }
    return {"figures": shares, "pictures": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m skipstone_pebble.recipe.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="pebble", help="a folder in Pebble's format; Pebble itself if not given")
    parser.add_argument("--judge", type=Path, help="weights of a judge; the shipped one if not given")
    parser.add_argument("--out", type=Path, default=Path("research/pebble"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--by-eye", action="store_true", help="draw 100 pictures for labelling instead")
    parser.add_argument("--agree", type=Path, metavar="LABELS", help="compare labels made by eye instead")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.agree is not None:
        compared = compare_with_labels(Judge.load(given.judge), given.out, given.agree)
        (given.out / "by_eye.json").write_text(json.dumps(compared, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(compared["figures"], indent=1))
        return
    model = Pebble.load(given.model)
    if given.by_eye:
        draw_for_labelling(model, given.out, given.steps, given.guidance, given.seed)
        return
    result = evaluate(model, Judge.load(given.judge), given.out, given.steps, given.guidance, given.seed)
    manifest = json.loads((find_model(given.model) / MANIFEST).read_text(encoding="utf-8"))["files"]
    result["weights"] = {name: entry["sha256"] for name, entry in manifest.items() if name.endswith(".safetensors")}
    text = json.dumps(result, indent=1)
    (given.out / "judge.json").write_text(text + "\n", encoding="utf-8")
    print(json.dumps(result["figures"], indent=1))


if __name__ == "__main__":
    main()
