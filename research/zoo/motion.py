"""Does a clip show the prompted object moving the prompted way? `python -m research.zoo.motion --train`.

Two independent looks at a clip:

- the direction, from the centroid of what differs from the ground, by a straight line through the frames;
- the object, by a small network on single frames, which also knows "nothing" (grounds, noise, two objects in one).

`--train` writes the network beside `clips_flow`; without it the judge is validated on clips that `data.py` draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from research.zoo.data import DIRECTIONS, GROUNDS, Pool, draw_pool
from research.zoo.pipeline import parse_prompt
from research.zoo.recipes import RECIPES

RECIPE = RECIPES["clips_flow"]
WEIGHTS = Path(__file__).parent / "clips_flow" / "judge.safetensors"
SIDE, FRAMES, OBJECTS = RECIPE.domain.side, RECIPE.domain.frames, len(RECIPE.domain.objects)
#: How far a colour must be from the ground's to belong to the object, in [0, 1].
CONTRAST = 0.2
#: Pixels a frame below which nothing moves (clips are drawn with 1.3), and sideways motion as a share of that along.
SPEED, ASIDE = 0.65, 0.5
#: Of the training: seed of its clips, how many, steps and frames a step.
SEED, CLIPS, STEPS, BATCH = 100, 1500, 1500, 64


def as_drawn(video: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """The clip (frames, side, side, 3) as `data.py` draws it, of the pipeline's video, which repeats its pixels."""
    every = (len(video) - 1) // (FRAMES - 1)
    return video[::every, :: video.shape[1] // SIDE, :: video.shape[2] // SIDE]


def velocity(clip: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Pixels a frame, right and down, of the centroid of what is not ground; (0, 0) where there is nothing else."""
    edge = np.concatenate([clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1]], axis=None).reshape(-1, 3)
    ground = np.median(edge, axis=0)
    solid = (np.abs(clip - ground).max(-1) - CONTRAST).clip(min=0) > 0
    mass = solid.sum((1, 2))
    if mass.min() < 1:
        return 0.0, 0.0
    places = np.arange(clip.shape[1])
    across, down = (solid.sum(1) @ places / mass, solid.sum(2) @ places / mass)
    times = np.arange(len(clip))
    return float(np.polyfit(times, across, 1)[0]), float(np.polyfit(times, down, 1)[0])


def direction(clip: NDArray[np.floating[Any]]) -> int:
    """Number of the direction in `DIRECTIONS`, or how many there are for a clip that goes none of these ways."""
    moved = np.array(velocity(clip))
    ways = np.array(list(DIRECTIONS.values()))
    units = ways / np.linalg.norm(ways, axis=1, keepdims=True)
    along = units @ moved
    best = int(along.argmax())
    aside = float(np.linalg.norm(moved - along[best] * units[best]))
    scale = clip.shape[1] / 24
    return best if along[best] >= SPEED * scale and aside <= ASIDE * along[best] else len(ways)


class ObjectNetwork(nn.Module):
    """Frames (B, 3, side, side) in [0, 1] to scores of the objects and, last, of nothing."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64)
        self.layers = nn.Sequential(
            *(
                part
                for before, after in pairwise(widths)
                for part in (nn.Conv2d(before, after, 3, padding=1, stride=1 if before == 3 else 2), nn.ReLU())
            )
        )
        self.out = nn.Linear(2 * widths[-1], OBJECTS + 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Scores (B, objects + 1)."""
        found = self.layers(frames - 0.5)
        return torch.as_tensor(self.out(torch.cat([found.mean((2, 3)), found.amax((2, 3))], 1)))


class MotionJudge:
    """Reads clips by `ObjectNetwork` and `direction`."""

    def __init__(self, network: ObjectNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, weights: Path = WEIGHTS) -> MotionJudge:
        """The trained judge."""
        network = ObjectNetwork()
        network.load_state_dict({k: v.float() for k, v in safetensors.torch.load_file(weights).items()})
        return cls(network)

    @torch.inference_mode()
    def object(self, clip: NDArray[np.floating[Any]]) -> int:
        """Number of the object that the frames show together, or how many there are for nothing known."""
        frames = torch.from_numpy(np.ascontiguousarray(clip, np.float32)).permute(0, 3, 1, 2)
        return int(self.network(frames).log_softmax(1).mean(0).argmax())

    def see(self, video: NDArray[np.floating[Any]]) -> tuple[int, int]:
        """Object and direction of a video in [0, 1], numbered as the network's labels."""
        clip = as_drawn(video)
        return self.object(clip), direction(clip)

    def score(self, video: NDArray[np.floating[Any]], prompt: str) -> float:
        """Share of what the prompt says of object and direction that the video shows, in [0, 1]."""
        wanted = parse_prompt(prompt, RECIPE.domain.words)
        said = [
            (want, seen)
            for want, seen, values in zip(wanted, self.see(video), RECIPE.domain.words, strict=True)
            if want < len(values)
        ]
        return sum(want == seen for want, seen in said) / len(said) if said else 1.0


def train(artwork: Path) -> ObjectNetwork:
    """A new network, on frames of clips drawn for it."""
    torch.manual_seed(SEED)
    pool = draw_pool(replace(RECIPE.domain, count=CLIPS), artwork, None, SEED)
    network = ObjectNetwork()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=STEPS)
    for step in range(STEPS):
        frames, labels = training_batch(pool, torch.Generator().manual_seed(step))
        loss = functional.cross_entropy(network(frames), labels, label_smoothing=0.05)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return network


def training_batch(pool: Pool, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames, a little blurred, noisy and recoloured, and their objects; an eighth of them show nothing known."""
    picks = torch.randint(len(pool.pictures), (BATCH,), generator=chance)
    times = torch.randint(FRAMES, (BATCH,), generator=chance)
    frames, labels = pool.pictures[picks, :, times].float() / 255, pool.labels[picks, 0].clone()
    soft = functional.avg_pool2d(frames, 3, 1, 1, count_include_pad=False)
    share = torch.rand(BATCH, 1, 1, 1, generator=chance) ** 2
    frames = frames.lerp(soft, share)
    strange = BATCH // 8
    frames[:strange], labels[:strange] = nothing(frames, strange, chance), OBJECTS
    tint = 1 + 0.1 * torch.randn(BATCH, 3, 1, 1, generator=chance)
    noise = 0.06 * torch.rand(BATCH, 1, 1, 1, generator=chance) * torch.randn(frames.shape, generator=chance)
    return (frames * tint + noise).clamp(0, 1), labels


def nothing(frames: torch.Tensor, count: int, chance: torch.Generator) -> torch.Tensor:
    """Grounds, noise, and halves or means of two frames, in turn."""
    grounds = torch.tensor([GROUNDS[name] for name in RECIPE.domain.grounds]) / 255
    plain = grounds[torch.randint(len(grounds), (count,), generator=chance)][:, :, None, None]
    noisy = plain + 0.3 * torch.randn(count, 3, SIDE, SIDE, generator=chance)
    one, other = frames[:count], frames[count : 2 * count]
    halves = torch.cat([one[..., : SIDE // 2], other[..., SIDE // 2 :]], -1)
    kinds = torch.stack([plain.expand_as(noisy), noisy, halves, (one + other) / 2])
    return kinds[torch.arange(count) % len(kinds), torch.arange(count)]


def validate(judge: MotionJudge, artwork: Path, clips: int = 400) -> dict[str, float]:
    """Shares of what the judge says rightly of clips that it was not trained on, and of clips played backwards."""
    pool = draw_pool(replace(RECIPE.domain, count=clips), artwork, None, SEED + 1)
    shown = pool.pictures.permute(0, 2, 3, 4, 1).float().numpy() / 255
    truth = pool.labels.numpy()
    rng = np.random.default_rng(0)
    rough = (shown + 0.03 * rng.standard_normal(shown.shape)).clip(0, 1)
    seen, back, noisy = (np.array([judge.see(clip) for clip in some]) for some in (shown, shown[:, ::-1], rough))
    turned = truth[:, 1] ^ 1  # right and left, down and up are neighbours
    return {
        "object": float((seen[:, 0] == truth[:, 0]).mean()),
        "direction": float((seen[:, 1] == truth[:, 1]).mean()),
        "both": float((seen == truth).all(1).mean()),
        "both, noise of 0.03 added": float((noisy == truth).all(1).mean()),
        "direction, played backwards": float((back[:, 1] == turned).mean()),
        "still or empty clips said to move": float(
            np.mean([direction(np.repeat(clip[:1], FRAMES, 0)) < len(DIRECTIONS) for clip in shown])
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.zoo.motion", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--train", action="store_true", help="train the network first and write it")
    parser.add_argument("--artwork", type=Path, default=Path("../shared/data"), help="holds emoji_noto")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.train:
        state = train(given.artwork).state_dict()
        WEIGHTS.parent.mkdir(exist_ok=True)
        safetensors.torch.save_file({k: v.half().contiguous() for k, v in state.items()}, WEIGHTS)
    for what, share in validate(MotionJudge.load(), given.artwork).items():
        print(f"{what}: {share:.3f}")


if __name__ == "__main__":
    main()
