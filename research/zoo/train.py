"""Train a network of the zoo: `python -m research.zoo.train NAME --minutes 15`.

A training that is stopped is taken up again by the same command. Minutes are of one core's work, so a pause does
not count. The learning rate follows the share of the minutes that is spent.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from research.zoo.data import Pool, draw_pool
from research.zoo.network import Denoiser, build, parameters_of
from research.zoo.recipes import RECIPES, Recipe
from research.zoo.sampling import to_samples

#: Share of the time over which the learning rate rises, and falls at the end.
WARM_UP, DECAY = 0.02, 0.35
#: Factor of the moving average of the weights, and share of the labels that are dropped.
AVERAGE, DROP = 0.998, 0.1
SAVE_SECONDS, LOG_STEPS = 60.0, 50


@dataclass(frozen=True)
class Places:
    """Where a training reads and writes.

    Args:
        runs: folder of all trainings; each has its own folder with `last.pt` and `log.jsonl`.
        artwork: folder that holds `emoji_noto` and `emoji_fluent`.
        fonts: folder of further fonts; None for matplotlib's alone.
    """

    runs: Path = Path("runs/zoo")
    artwork: Path = Path("../shared/data")
    fonts: Path | None = None


def rate_factor(share: float) -> float:
    """Learning rate as a fraction of its peak: linear rise, constant, 1 - sqrt fall (arXiv:2405.18392)."""
    fall = max(0.0, (share - (1 - DECAY)) / DECAY)
    return min(1.0, (share + 1e-4) / WARM_UP) * (1 - math.sqrt(min(1.0, fall)))


def optimisers(network: Denoiser, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of a transformer's blocks where the recipe says so."""
    inner = [p for name, p in network.named_parameters() if recipe.muon and "blocks" in name and p.ndim == 2]
    chosen = set(map(id, inner))
    rest = [p for p in network.parameters() if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ]
    if inner:
        found.append(torch.optim.Muon(inner, lr=recipe.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return found


class Training:
    """The loop, its checkpoint and its log."""

    def __init__(self, recipe: Recipe, pool: Pool, places: Places, minutes: float) -> None:
        torch.manual_seed(0)
        self.recipe, self.pool, self.minutes = recipe, pool, minutes
        self.folder = places.runs / recipe.name
        self.network = build(recipe.network, recipe.counts)
        self.teacher = self._teacher(places) if recipe.teacher else None
        self.optimisers = optimisers(self.network, recipe)
        self.average = [p.detach().clone() for p in self.network.parameters()]
        self.step, self.seconds, self.loss = 0, 0.0, 0.0
        self.resume()

    def _teacher(self, places: Places) -> Denoiser:
        """The teacher, whose weights the student takes where the two agree: its training's, else its finished ones."""
        from research.zoo.export import load, load_run

        assert self.recipe.teacher is not None
        trained = (places.runs / self.recipe.teacher / "last.pt").is_file()
        recipe, finished = RECIPES[self.recipe.teacher], Path(__file__).parent / self.recipe.teacher
        teacher = load_run(recipe, places.runs) if trained else load(finished)
        self.network.load_state_dict(teacher.state_dict(), strict=False)
        return teacher

    def batch(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Generator]:
        """Samples and labels of this step, and the step's source of chance."""
        chance = torch.Generator().manual_seed(self.step)
        picks = torch.randint(len(self.pool.pictures), (self.recipe.batch,), generator=chance)
        samples = to_samples(self.pool.pictures[picks], self.recipe)
        if not self.recipe.labelled:
            return samples, None, chance
        labels = self.pool.labels[picks]
        dropped = torch.rand(len(picks), 1, generator=chance) < DROP
        if self.teacher is not None:
            dropped[:] = False
        return samples, torch.where(dropped, self.network.unlabelled(len(picks)), labels), chance

    def error(self) -> torch.Tensor:
        """The loss of one batch."""
        samples, labels, chance = self.batch()
        noise = torch.randn(samples.shape, generator=chance)
        # One place from each of B equal stretches, for a steadier gradient.
        spread = (torch.arange(len(samples)) + torch.rand(len(samples), generator=chance)) / len(samples)
        noised = self.recipe.schedule.noised(samples, noise, spread[torch.randperm(len(spread), generator=chance)])
        target, guidance = noised.target, None
        if self.teacher is not None:
            low, high = self.recipe.guidances
            guidance = low + (high - low) * torch.rand(len(samples), generator=chance)
            with torch.no_grad():
                said = self.teacher(noised.inputs, noised.timestep, labels)
                free = self.teacher(noised.inputs, noised.timestep, self.teacher.unlabelled(len(samples)))
                target = free + guidance[:, None, None, None] * (said - free)
        guess = self.network(noised.inputs, noised.timestep, labels, guidance)
        return torch.as_tensor((noised.weight * ((guess - target) ** 2).flatten(1).mean(1)).mean())

    def advance(self) -> dict[str, float]:
        """Take one step; returns the figures of the log."""
        began = time.process_time()
        rate = self.recipe.rate * rate_factor(self.seconds / (60 * self.minutes))
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = rate
        loss = self.error()
        self.network.zero_grad()
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        # A young average forgets its random start sooner.
        keep = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.network.parameters()], 1 - keep)
        self.seconds += time.process_time() - began
        self.loss += (1 / min(self.step, 100)) * (float(loss.detach()) - self.loss)
        return {"loss": self.loss, "norm": float(norm), "rate": rate}

    def run(self, console: Console) -> None:
        """Train until the minutes are spent."""
        self.folder.mkdir(parents=True, exist_ok=True)
        goal, saved = 60 * self.minutes, self.seconds
        console.print(f"{self.recipe.name}: {parameters_of(self.network) / 1e6:.2f} M parameters, {self.minutes} min")
        while self.seconds < goal:
            figures = self.advance()
            if self.step % LOG_STEPS == 0 or self.seconds >= goal:
                self._log(figures, console)
            if self.seconds - saved > SAVE_SECONDS:
                self.save()
                saved = self.seconds
        self.save()

    def _log(self, figures: dict[str, float], console: Console) -> None:
        line = {"step": self.step, **figures, "seconds": round(self.seconds, 2)}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        left = self.minutes - self.seconds / 60
        console.print(
            f"{self.recipe.name}  step {self.step}  loss {self.loss:.4f}  {self.step / self.seconds:.2f} steps/s  "
            f"{left:.1f} min left"
        )

    def save(self) -> None:
        """Write the checkpoint so that a crash leaves either the old one or the new one, whole."""
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
            "network": self.network.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
        }
        part = self.folder / "last.part"
        torch.save(state, part)
        os.replace(part, self.folder / "last.pt")

    def resume(self) -> None:
        """Take up the folder's checkpoint if there is one."""
        file = self.folder / "last.pt"
        if not file.is_file():
            return
        state = torch.load(file, weights_only=True)
        self.network.load_state_dict(state["network"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.average = state["average"]
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.zoo.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--minutes", type=float, help="of one core; the recipe's, if not given")
    parser.add_argument("--runs", type=Path, default=Places.runs, help="folder of the trainings")
    parser.add_argument("--artwork", type=Path, default=Places.artwork, help="holds emoji_noto and emoji_fluent")
    parser.add_argument("--fonts", type=Path, help="folder of further fonts for the digits")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = RECIPES[given.name]
    places = Places(given.runs, given.artwork, given.fonts)
    pool = draw_pool(recipe.domain, places.artwork, places.fonts, seed=0)
    Training(recipe, pool, places, given.minutes or recipe.minutes).run(Console(width=120))


if __name__ == "__main__":
    main()
