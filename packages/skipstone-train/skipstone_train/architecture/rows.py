"""What children learn from: a teacher's outputs on its own way to each picture, kept by a hash of their causes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from skipstone.cli.files import write_atomically
from skipstone.integrations.identity import digest

from ..students.levels import Levels, to_clean

SHARD = 64  # prompts of one file; even, so that a row's place in a batch stays even or odd
LEVELS = 1000  # times that rows are taken at
FORMAT = 1

Progress = Callable[[str, float, float], None]  # what, done, total


@dataclass(frozen=True)
class RowOrder:
    """What the teacher draws.

    Args:
        prompts: One for each drawing.
        seed: Of the first drawing; the others follow.
        steps: Of each, which are its rows.
        precision: "bf16" or "no" (float32), of the teacher's matrix products.
    """

    prompts: tuple[str, ...]
    seed: int
    steps: int
    precision: str = "bf16"


@dataclass(frozen=True)
class Batch:
    """Rows of a training step: noisy latents, times of the network, conditions, and what the teacher answers."""

    x: torch.Tensor
    times: torch.Tensor
    condition: torch.Tensor
    output: torch.Tensor


@dataclass(frozen=True)
class TeacherRows:
    """Rows of a teacher: for each prompt its steps, and for each of them the outputs with the prompt and without.

    A row of an even prompt stays at an even place of every batch, one of an odd prompt at an odd place: Pebble-DiT
    gives every other sample of a training batch another number of empty text rows.

    Args:
        prompts: Of each drawing.
        x: (prompts, steps, ...), half precision.
        times: (prompts, steps), of the network.
        outputs: (prompts, steps, 2, ...): with the prompt, without.
        conditions: (prompts, ...).
        empty: Condition of the empty prompt.
    """

    prompts: tuple[str, ...]
    x: torch.Tensor
    times: torch.Tensor
    outputs: torch.Tensor
    conditions: torch.Tensor
    empty: torch.Tensor

    def __len__(self) -> int:
        return 2 * self.times.numel()

    def batch(self, generator: torch.Generator, size: int, with_prompt: float = 0.75) -> Batch:
        """Random rows; a share of them has the prompt."""
        half, steps = len(self.prompts) // 2, self.times.shape[1]
        prompt = 2 * torch.randint(half, (size,), generator=generator) + torch.arange(size) % 2
        step = torch.randint(steps, (size,), generator=generator)
        branch = (torch.rand(size, generator=generator) >= with_prompt).long()
        return self.pick(prompt, step, branch)

    def pick(self, prompt: torch.Tensor, step: torch.Tensor, branch: torch.Tensor) -> Batch:
        """Rows by their numbers; branch 1 is without the prompt."""
        condition = self.conditions[prompt]
        condition[branch == 1] = self.empty
        output = self.outputs[prompt, step, branch].float()
        return Batch(self.x[prompt, step].float(), self.times[prompt, step], condition, output)


def teacher_rows(model: Any, order: RowOrder, cache: Path, on_progress: Progress | None = None) -> TeacherRows:
    """Draw the prompts with a model under its guidance, and keep every row.

    Files are found again by SHA-256 over weights, schedule, guidance, prompts and seeds, so that nothing is drawn
    twice and nothing stale is used.

    Args:
        model: An embedded model of the library, such as Pebble-DiT.
        order: What.
        cache: Folder of the files.
        on_progress: Called with (what, done, total).
    """
    facts = {
        "format": FORMAT,
        "weights": digest({"denoiser": model.unet, "encoder": model.encoder}),
        "guidance": model.guidance,
    }
    known = {text: model.encode(text) for text in dict.fromkeys([*order.prompts, ""])}
    found = []
    for start in range(0, len(order.prompts), SHARD):
        part = replace(order, prompts=order.prompts[start : start + SHARD], seed=order.seed + start)
        key = json.dumps([facts, asdict(part)], sort_keys=True)
        file = cache / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
        conditions = torch.stack([known[text] for text in part.prompts])
        if not file.is_file():
            write_atomically({file: save(_draw(model, part, conditions, known[""]))})
        found.append({**load_file(file), "conditions": conditions})
        if on_progress is not None:
            on_progress("Drawing with the teacher", start + len(part.prompts), len(order.prompts))
    joined = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    return TeacherRows(order.prompts, empty=known[""], **joined)


@torch.no_grad()
def _draw(model: Any, order: RowOrder, conditions: torch.Tensor, empty: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rows of some prompts, each on its own times."""
    levels, count = Levels.of(model.schedule, LEVELS), len(order.prompts)
    both = torch.cat([conditions, empty.expand_as(conditions)])
    x = torch.stack([model.problem(order.prompts[i], order.seed + i).x for i in range(count)])
    index = _times(order, count)
    rows: dict[str, list[torch.Tensor]] = {"x": [], "times": [], "outputs": []}
    model.unet.train()  # every other row as in training; there is no dropout
    try:
        for step in range(order.steps):
            start, end = index[:, step], index[:, step + 1]
            times = levels.timestep[start]
            x = x.half().float()  # as it is kept
            with torch.autocast(x.device.type, torch.bfloat16, enabled=order.precision == "bf16"):
                output = model.family.forward(model.unet, torch.cat([x, x]), times.repeat(2), both)
            having, without = output.float().chunk(2)
            rows["x"].append(x.half())
            rows["times"].append(times)
            rows["outputs"].append(torch.stack([having, without], 1).half())
            guided = without + model.guidance * (having - without)
            clean = to_clean(model.backbone.prediction, guided, x, levels.scales(start, x))
            x = levels.step(x, clean, start, end)
    finally:
        model.unet.eval()
    return {name: torch.stack(parts, 1).contiguous() for name, parts in rows.items()}


def _times(order: RowOrder, count: int) -> torch.Tensor:
    """Levels (count, steps + 1) from noise to data, evenly spaced but for a shift of each within its part."""
    generator = torch.Generator().manual_seed(order.seed)
    base = torch.linspace(LEVELS, 0, order.steps + 1)
    shift = (torch.rand(count, order.steps - 1, generator=generator) - 0.5) * (LEVELS / order.steps)
    found = base.repeat(count, 1)
    found[:, 1:-1] += shift
    return found.round().long().clamp(0, LEVELS)


def prompts_for(texts: Sequence[str], count: int) -> tuple[str, ...]:
    """So many prompts, an even number: the texts over and over."""
    even = 2 * (count // 2) or 2
    return tuple(texts[i % len(texts)] for i in range(even))
