"""The training loop shared by every part of the recipe: rate schedule, log, checkpoints, resuming."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from skipstone.errors import ModelError


@dataclass(frozen=True)
class TrainingArguments:
    """Where and how long one part of the recipe trains.

    Args:
        folder: receives `last.pt` (checkpoint) and `log.jsonl`.
        seed: of weights, data and noise.
        steps: total; may differ when a run is resumed, as only the last `decay` steps depend on it.
        decay: the last steps, over which the learning rate falls to 0.
        warmup: the first steps, over which it rises from 0.
        average: factor of the exponential moving average of the weights; 0 for none.
        clip: largest norm of the gradient.
        save_seconds: time between checkpoints.
        log_steps: steps between lines of the log.
        stop: leave (with a checkpoint) after this many steps although `steps` is larger; None for never.
    """

    folder: Path
    seed: int = 0
    steps: int = 1000
    decay: int = 200
    warmup: int = 100
    average: float = 0.999
    clip: float = 1.0
    save_seconds: float = 120.0
    log_steps: int = 25
    stop: int | None = None


def rate_factor(run: TrainingArguments, step: int) -> float:
    """Learning rate of a step as a fraction of its peak: linear rise, constant, 1 - sqrt fall (arXiv:2405.18392)."""
    rise = min(1.0, (step + 1) / max(1, run.warmup))
    into = max(0, step - (run.steps - run.decay))
    return rise * (1 - math.sqrt(into / max(1, run.decay)))


def build_optimizers(
    parameters: Sequence[nn.Parameter], matrices: Sequence[nn.Parameter], rate: float
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices among the parameters, AdamW for the others; both at one rate.

    Raises ModelError where this torch has no Muon.
    """
    if matrices and not hasattr(torch.optim, "Muon"):
        raise ModelError(f"Muon comes with torch 2.9, this is {torch.__version__}: update torch, or train by AdamW.")
    chosen = set(map(id, matrices))
    rest = [p for p in parameters if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ]
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return found


class Trainer:
    """AdamW (and Muon) with warm-up, decay, clipping, averaged weights, a log and exact resuming.

    A subclass gives `loss(step)`, which must depend on the weights, the run's seed and the step alone:
    then a run resumed from a checkpoint is the same, bit for bit, as one that never stopped.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        parameters: list[nn.Parameter],
        rate: float,
        run: TrainingArguments,
        settings: dict[str, Any],
        matrices: Sequence[nn.Parameter] = (),
    ) -> None:
        self.models, self.parameters, self.rate, self.run = dict(models), parameters, rate, run
        self.options = json.loads(json.dumps(settings))
        self.step = 0
        self.optimisers = build_optimizers(parameters, matrices, rate)
        self.average = [p.detach().clone() for p in parameters] if run.average else []

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of the batch of one step, and figures to log."""
        raise NotImplementedError

    def advance(self) -> dict[str, float]:
        """Take one step; returns the figures of the log."""
        rate = self.rate * rate_factor(self.run, self.step)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = rate
        loss, figures = self.loss(self.step)
        for parameter in self.parameters:
            parameter.grad = None
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.run.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        if self.average:
            # A young average forgets its random start sooner.
            keep = min(self.run.average, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)
        return {"loss": float(loss.detach()), "norm": float(norm), "rate": rate, **figures}

    def train(self, console: Console | None = None) -> None:
        """Run to `run.steps` (or `run.stop`), from the checkpoint in the folder if there is one."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        goal = self.run.steps if self.run.stop is None else min(self.run.stop, self.run.steps)
        log, saved, began, first = self.run.folder / "log.jsonl", time.monotonic(), time.monotonic(), self.step
        while self.step < goal:
            figures = self.advance()
            if self.step % self.run.log_steps == 0 or self.step == goal:
                seconds = time.monotonic() - began
                line = {"step": self.step, **figures, "seconds": round(seconds, 2)}
                with log.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
                if console is not None:
                    pace = (self.step - first) / max(seconds, 1e-9)
                    left = (goal - self.step) / max(pace, 1e-9)
                    shown = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
                    console.print(
                        f"{self.run.folder.name}  step {self.step}/{goal}  {shown}  "
                        f"{pace:.2f} steps/s  {left / 60:.1f} min left"
                    )
            if time.monotonic() - saved > self.run.save_seconds:
                self.save()
                saved = time.monotonic()
        self.save()

    def save(self) -> None:
        """Write the checkpoint so that a crash leaves either the old one or the new one, whole."""
        file = self.run.folder / "last.pt"
        state = {
            "step": self.step,
            "seed": self.run.seed,
            "settings": self.options,
            "models": {name: model.state_dict() for name, model in self.models.items()},
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
        }
        torch.save(state, file.with_suffix(".part"))
        os.replace(file.with_suffix(".part"), file)

    def resume(self) -> None:
        """Take up the folder's checkpoint if there is one.

        Raises:
            ModelError: it was made with another seed or other settings.
        """
        file = self.run.folder / "last.pt"
        if not file.is_file():
            return
        state = torch.load(file, weights_only=True)
        if state["seed"] != self.run.seed or state["settings"] != self.options:
            raise ModelError(
                f"{file} was trained with seed {state['seed']} and {state['settings']}, expected seed "
                f"{self.run.seed} and {self.options}; use the same options or another --out folder"
            )
        for name, model in self.models.items():
            model.load_state_dict(state["models"][name])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.average, self.step = state["average"], state["step"]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The models with the averaged weights, inside a `with` block."""
        raw = [p.detach().clone() for p in self.parameters]
        self.use_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, old in zip(self.parameters, raw, strict=True):
                    parameter.copy_(old)

    def use_average(self) -> None:
        """Put the averaged weights into the models (the raw ones stay in the checkpoint)."""
        if not self.average:
            return
        with torch.no_grad():
            for parameter, mean in zip(self.parameters, self.average, strict=True):
                parameter.copy_(mean)


def plot_curve(folder: Path) -> Path:
    """Draw `curve.png` (loss over steps, both axes logarithmic) from a part's `log.jsonl`."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    # A resumed run logs the steps after its checkpoint again: the later line counts.
    by_step = {line["step"]: line for line in lines}
    steps = sorted(by_step)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, [by_step[step]["loss"] for step in steps], linewidth=0.7)
    axes.set(xlabel="step", ylabel="loss", title=folder.name, xscale="log", yscale="log")
    axes.grid(True, which="both", alpha=0.2)
    figure.savefig(folder / "curve.png", dpi=120)
    return folder / "curve.png"
