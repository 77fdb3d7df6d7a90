"""Train one child of Pebble-DiT: `python -m research.architecture.train_child -h`.

Draws the teacher's rows, gives the child the teacher's weights, trains it on the rows, and writes it as a model folder.
The same command goes on where it was stopped.

    python -m research.architecture.train_child --out child --shape depth=3 width=192 heads=3 mlp_ratio=1.5
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipstone.evaluation.models import load_embedded
from skipstone.evaluation.prompts import load_prompts
from skipstone_pebble.compact import Shape
from skipstone_pebble.recipe.data import draw_scene
from skipstone_pebble.text import vary_caption
from skipstone_train.architecture.rows import RowOrder, TeacherRows, prompts_for, teacher_rows
from skipstone_train.architecture.training import ChildTraining

SEED = 1_000_000


def training_prompts(varied: int) -> list[str]:
    """The prompts for students, and so many captions in other words; no scene is withheld."""
    rng = np.random.default_rng([SEED, 4])
    plain = [prompt.text for prompt in load_prompts("pebble-training")]
    other = [vary_caption(draw_scene(rng), rng) for _ in range(varied)]
    pairs = enumerate(zip(plain, other, strict=False))  # each kind at even and at odd places alike
    return [text for i, pair in pairs for text in (pair if i % 2 == 0 else pair[::-1])] if varied else plain


def parse_shape(pairs: Sequence[str]) -> Shape:
    """`depth=3 width=192 ...` as a shape."""
    kinds: dict[str, Any] = {"depth": int, "width": int, "heads": int, "mlp_ratio": float}
    given = dict(pair.split("=", 1) for pair in pairs)
    return Shape(**{name: kinds.get(name, str)(value) for name, value in given.items()})


def inherit(model: Any, rows: TeacherRows, shape: Shape, count: int = 64) -> Any:
    """The child before training; what it keeps is measured on rows of the teacher."""
    some = rows.batch(torch.Generator().manual_seed(SEED), count)

    @torch.no_grad()
    def run(network: Any) -> torch.Tensor:
        output: torch.Tensor = model.family.forward(network.eval(), some.x, some.times, some.condition)
        return output

    return model.family.inheritance(model.unet, run).child(shape)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.architecture.train_child", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=Path, help="folder of the teacher's rows; rows/ in --out by default")
    parser.add_argument("--shape", nargs="+", required=True, metavar="KEY=VALUE")
    parser.add_argument("--drawings", type=int, default=3072)
    parser.add_argument("--row-steps", type=int, default=8)
    parser.add_argument("--train-steps", type=int, default=6000)
    parser.add_argument("--stop", type=int)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--precision", default="bf16")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model: Any = load_embedded("pebble-dit")
    given.out.mkdir(parents=True, exist_ok=True)
    texts = prompts_for(training_prompts(2048), given.drawings)
    began = time.monotonic()
    order = RowOrder(texts, SEED, given.row_steps, given.precision)
    rows = teacher_rows(model, order, given.rows or given.out / "rows", lambda *said: print(*said, flush=True))
    print(f"{len(rows)} rows, {time.monotonic() - began:.1f} s", flush=True)
    child = inherit(model, rows, parse_shape(given.shape))
    training = ChildTraining(model.family, rows, given.train_steps, given.batch, given.rate, given.ema, given.precision)
    facts = {"shape": asdict(parse_shape(given.shape)), "drawings": given.drawings}
    began = time.monotonic()

    def on_step(step: int, steps: int, loss: float) -> None:
        if step % 25 == 0:
            print(f"step {step}/{steps}  loss {loss:.4f}  {time.monotonic() - began:.0f} s", flush=True)

    training.train(child, given.out / "training", facts, given.stop, on_step)
    folder = model.with_denoiser(child).save(given.out / "model")
    print(json.dumps({"folder": str(folder), "parameters": sum(p.numel() for p in child.parameters())}))


if __name__ == "__main__":
    main()
