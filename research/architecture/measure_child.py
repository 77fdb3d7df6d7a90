"""A child beside its teacher on withheld prompts: `python -m research.architecture.measure_child -h`.

Draws the same prompts and seeds with both, reads the pictures with the judge, and times network calls in turns.

    python -m research.architecture.measure_child --model child/model --out research/architecture/child
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
from skipstone.evaluation.models import load_embedded
from skipstone.evaluation.pixels import to_uint8
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.subject import SampleRequest
from skipstone.metrics import PSNR, Sample
from skipstone_train.architecture.cost import estimate_memory, measure_latency
from skipstone_train.architecture.memory_check import measured_memory

TEACHER = "pebble-dit"
ROUNDS = 61
SHEET = 10  # prompts on the sheet


def draw(model: Any, items: Sequence[SampleRequest], steps: int) -> tuple[list[Any], list[float]]:
    """Pictures, and the judge's scores in points."""
    subject = EngineSubject.from_loaded(model)
    column = subject.resolve_column(parse_column(f"fixed @ unipc / trailing / {steps}", *DEFAULT_SAMPLER))
    pictures = subject.pictures(subject.draw(items, column)[0])
    return pictures, [100 * model.judge(picture, item.prompt) for picture, item in zip(pictures, items, strict=True)]


def costs(models: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Latency of a call of one guided sample and of eight, in turns, and memory."""
    problem = models["teacher"].problem("a red apple on a blue background")
    found: dict[str, Any] = {}
    for samples in (1, 8):
        x = torch.stack([problem.x] * 2 * samples)
        condition = torch.stack([problem.cond["cond"], problem.cond["uncond"]] * samples)
        times = torch.full((len(x),), 500.0)

        def call(model: Any, rows: Any = (x, times, condition)) -> Any:
            return model.family.forward(model.unet, *rows)

        with torch.inference_mode():
            calls = {name: lambda model=model, call=call: call(model) for name, model in models.items()}
            latencies = measure_latency(calls, "teacher", ROUNDS if samples == 1 else ROUNDS // 3)
            found[f"call, {samples} guided"] = {name: asdict(one) for name, one in latencies.items()}
            if samples == 1:
                found["memory estimated, MB"] = {
                    name: estimate_memory(model.unet, calls[name]) for name, model in models.items()
                }
    places = [load_folder(TEACHER), folder]
    found["memory measured, MB"] = dict(zip(models, measured_memory(places), strict=True))
    found["parameters"] = {name: sum(p.numel() for p in model.unet.parameters()) for name, model in models.items()}
    return found


def load_folder(name: str) -> Path:
    """The folder of a shipped model."""
    import skipstone_pebble as pebble

    return pebble.path(name)


def write_sheet(rows: Sequence[Sequence[Any]], file: Path) -> None:
    """Pictures of both, one above the other, twice their size."""
    from PIL import Image

    pixels = np.concatenate([np.concatenate([to_uint8(p) for p in row[:SHEET]], 1) for row in rows])
    size = (pixels.shape[1] * 2, pixels.shape[0] * 2)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(file)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.architecture.measure_child", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", type=Path, required=True, help="folder of the child")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=128, help="withheld prompts")
    parser.add_argument("--steps", type=int, default=25)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    models = {"teacher": load_embedded(TEACHER), "child": load_embedded(str(given.model))}
    items = [SampleRequest(p.text, i) for i, p in enumerate(load_prompts("pebble", limit=given.limit))]
    told = costs(models, given.model)
    drawn = {name: draw(model, items, given.steps) for name, model in models.items()}
    scores = {name: one[1] for name, one in drawn.items()}
    down = [a - b for a, b in zip(scores["teacher"], scores["child"], strict=True)]
    psnr = [
        PSNR().measure(Sample(mine, reference=theirs))
        for mine, theirs in zip(drawn["child"][0], drawn["teacher"][0], strict=True)
    ]
    told |= {
        "prompts": len(items),
        "steps": given.steps,
        "judge": {name: statistics.fmean(one) for name, one in scores.items()},
        "points down": statistics.fmean(down),
        "points down, standard error": statistics.stdev(down) / len(down) ** 0.5,
        "PSNR to the teacher, median": statistics.median(psnr),
        "PSNR to the teacher, p10": sorted(psnr)[len(psnr) // 10],
        "scores": [
            {"prompt": i.prompt, "seed": i.seed, **{n: s[k] for n, s in scores.items()}} for k, i in enumerate(items)
        ],
    }
    (given.out / "judge.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    write_sheet([drawn["teacher"][0], drawn["child"][0]], given.out / "sheet.png")
    print(json.dumps({name: value for name, value in told.items() if name != "scores"}, indent=1))


if __name__ == "__main__":
    main()
