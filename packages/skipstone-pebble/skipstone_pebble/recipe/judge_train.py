"""Train the judge apart from Pebble: `python -m skipstone_pebble.recipe.judge_train PICTURES_FOLDER --out DIR`.

It learns from renders with objects a few pixels off their places, partly blurred, noisy, tinted, or sent
through Pebble's autoencoder (`--model`), and is tested on layouts that it never saw. Unlike Pebble it
sees the withheld combinations: it must read them without bias.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import save_file
from scipy import ndimage
from torch.nn import functional

from ..judge import Judge, JudgeNetwork, target_classes
from ..scenes import Offsets, Scene, Sprites, render
from ..words import BACKGROUNDS, OBJECTS, RELATIONS, SIZES
from . import autoencoder, data, sprites
from .trainer import Trainer, TrainingArguments, plot_curve


@dataclass(frozen=True)
class JudgeSettings:
    """Training of the judge: pictures in a step, peak rate, share sent through the autoencoder."""

    batch: int = 64
    rate: float = 2e-3
    coded: float = 0.15


def draw_any_scene(rng: np.random.Generator) -> Scene:
    """Any scene of the grammar, withheld or not."""
    names, ground = list(OBJECTS), list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
    if rng.random() < 0.6:
        first, second = rng.choice(len(names), 2, replace=False)
        relation = list(RELATIONS)[int(rng.integers(len(RELATIONS)))]
        return Scene((names[int(first)], names[int(second)]), relation, ground)
    size = list(SIZES)[int(rng.integers(len(SIZES)))]
    return Scene((names[int(rng.integers(len(names)))],), None, ground, size)


def is_held_out(offsets: Offsets) -> bool:
    """Whether a layout belongs to the test: about one in five, spread evenly."""
    return sum((3 * dx + 5 * dy + 7 * dx * dy) * (index + 1) for index, (dx, dy) in enumerate(offsets)) % 5 == 2


def draw_layout(rng: np.random.Generator, scene: Scene, test: bool) -> Offsets:
    """Offsets up to 5 px across and, of two objects, up to 2 px along the line that joins them."""
    while True:
        offsets: list[tuple[int, int]] = []
        for _ in scene.objects:
            along, across = int(rng.integers(-2, 3)), int(rng.integers(-5, 6))
            if scene.relation is None:
                along = int(rng.integers(-5, 6))
            offsets.append((along, across) if scene.relation in (None, "left of", "right of") else (across, along))
        if is_held_out(tuple(offsets)) == test:
            return tuple(offsets)


def draw_render(rng: np.random.Generator, art: Sprites, test: bool) -> tuple[Scene, NDArray[np.uint8]]:
    """A scene and its picture, in a layout for training or for the test."""
    scene = draw_any_scene(rng)
    return scene, render(scene, art, draw_layout(rng, scene, test))


def augment(rng: np.random.Generator, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Now and then blur, tint and noise, as a generated picture may have."""
    values = picture.astype(np.float32)
    if rng.random() < 0.3:
        sigma = float(rng.uniform(0.3, 1.1))
        values = ndimage.gaussian_filter(values, (sigma, sigma, 0))
    if rng.random() < 0.5:
        values = values * rng.uniform(0.92, 1.08) + rng.uniform(-12, 12, 3).astype(np.float32)
    if rng.random() < 0.4:
        values = values + rng.normal(0, rng.uniform(1, 10), values.shape).astype(np.float32)
    return values.clip(0, 255).astype(np.uint8)


PictureTransform = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def make_autoencoder_transform(folder: Path) -> PictureTransform:
    """Sends pictures (N, 3, 64, 64) in [-1, 1] through a model's autoencoder, its latents a little noisy."""
    from ..model import Pebble

    model = Pebble.load(folder).autoencoder

    @torch.no_grad()
    def send(pictures: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
        latents = autoencoder.encode(model, pictures)
        level = torch.rand(len(latents), 1, 1, 1, generator=dice) * 0.3
        latents = latents + level * torch.randn(latents.shape, generator=dice)
        made: torch.Tensor = model.decode(latents / model.config.scaling_factor).sample
        return made.clamp(-1, 1)

    return send


class JudgeTrainer(Trainer):
    """Cross-entropy of the five questions; the size is asked of pictures with one object only."""

    def __init__(
        self,
        reader: JudgeNetwork,
        art: Sprites,
        settings: JudgeSettings,
        run: TrainingArguments,
        send: PictureTransform | None,
    ) -> None:
        self.reader, self.art, self.settings, self.transform = reader, art, settings, send
        super().__init__({"judge": reader}, list(reader.parameters()), settings.rate, run, asdict(settings))

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of one batch, and the share of pictures read without a mistake."""
        rng = np.random.default_rng([self.run.seed, 5, step])
        dice = torch.Generator().manual_seed(self.run.seed * 1_000_003 + step)
        drawn = [draw_render(rng, self.art, test=False) for _ in range(self.settings.batch)]
        pictures = data.to_tensor(np.stack([augment(rng, picture) for _, picture in drawn]))
        coded = int(self.settings.batch * self.settings.coded) if self.transform is not None else 0
        if self.transform is not None and coded:
            pictures = torch.cat([self.transform(pictures[:coded], dice), pictures[coded:]])
        wanted = {
            name: torch.tensor([target_classes(scene)[name] for scene, _ in drawn])
            for name in ("layout", "first", "second", "ground", "size")
        }
        alone = wanted["layout"] == 0
        logits = self.reader(pictures)
        total, right = torch.zeros(()), torch.ones(len(drawn), dtype=torch.bool)
        for name, classes in wanted.items():
            losses = functional.cross_entropy(logits[name], classes, reduction="none", label_smoothing=0.02)
            hit = logits[name].argmax(-1) == classes
            if name == "size":
                losses, hit = losses * alone, hit | ~alone
            total, right = total + losses.mean(), right & hit
        return total, {"right": float(right.float().mean())}


def evaluate_judge(judge: Judge, art: Sprites, seed: int, count: int) -> dict[str, float]:
    """Shares of clean renders in held-out layouts on which the judge is right, in all and by question."""
    rng = np.random.default_rng([seed, 6])
    drawn = [draw_render(rng, art, test=True) for _ in range(count)]
    readings = judge.read(np.stack([picture for _, picture in drawn]))
    correct: dict[str, list[bool]] = {"objects": [], "positions": [], "background": [], "size": [], "all": []}
    for (scene, _), reading in zip(drawn, readings, strict=True):
        ordered_scene = scene if scene.relation in (None, "left of", "above") else scene.mirror()
        places = {None: "centre", "left of": "left", "above": "above"}[ordered_scene.relation]
        marks = {
            "objects": reading.objects == ordered_scene.objects,
            "positions": reading.positions[0] == places,
            "background": reading.background == ordered_scene.background,
            "size": reading.size == ordered_scene.size,
        }
        for name, mark in {**marks, "all": all(marks.values())}.items():
            correct[name].append(mark)
    return {"pictures": count, **{name: float(np.mean(marks)) for name, marks in correct.items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: trains, tests on held-out layouts, writes `judge.safetensors` and `judge_test.json`."""
    parser = argparse.ArgumentParser(prog="python -m skipstone_pebble.recipe.judge_train", description=__doc__)
    parser.add_argument("pictures", type=Path, help="folder of the artwork, as for skipstone_pebble.recipe.train")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--model", type=Path, help="folder of a Pebble, for its autoencoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed + 2)
    art, reader = sprites.load_sprites(given.pictures), JudgeNetwork()
    run = TrainingArguments(given.out, given.seed, given.steps, given.steps // 3, min(100, given.steps // 10 + 1))
    send = make_autoencoder_transform(given.model) if given.model is not None else None
    trainer = JudgeTrainer(reader, art, JudgeSettings(coded=0.15 if send else 0.0), run, send)
    trainer.train(Console())
    trainer.use_average()
    plot_curve(given.out)
    file = given.out / "judge.safetensors"
    save_file({name: value.half().contiguous() for name, value in reader.state_dict().items()}, file)
    figures = evaluate_judge(Judge.load(file), art, given.seed, 2000)
    (given.out / "judge_test.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    Console().print(figures)


if __name__ == "__main__":
    main()
