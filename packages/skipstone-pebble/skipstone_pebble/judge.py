"""The judge: a small network that reads objects, their places and the background from a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skipstone.errors import ModelError, PromptError

from .scenes import Scene, parse_prompt
from .words import BACKGROUNDS, OBJECTS, SIZES

#: Ways two objects can stand, or one alone; with the names of the places, first to second.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "alone": ("centre",),
    "beside": ("left", "right"),
    "stacked": ("above", "below"),
}
_NAMES, _GROUNDS, _SIZES = tuple(OBJECTS), tuple(BACKGROUNDS), tuple(SIZES)
#: Outputs of the network by head; the second object's last class is "none".
HEADS = {"layout": 3, "first": len(_NAMES), "second": len(_NAMES) + 1, "ground": len(_GROUNDS), "size": 3}
_FILE = Path(__file__).with_name("weights") / "judge.safetensors"


@dataclass(frozen=True)
class JudgeReading:
    """What the judge sees in one picture.

    Args:
        objects: one or two names, left before right, above before below.
        positions: where each is: "centre"; "left", "right"; "above", "below".
        background: name of the ground's colour.
        size: "small", "normal" or "large"; "normal" for two objects.
        confidence: product of the probabilities of the parts, in [0, 1].
    """

    objects: tuple[str, ...]
    positions: tuple[str, ...]
    background: str
    size: str
    confidence: float


class JudgeNetwork(nn.Module):
    """Four strided convolutions, a 4 x 4 grid of features, and a linear head for each question."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 3
        for out, stride in ((width, 2), (2 * width, 2), (3 * width, 2), (3 * width, 1)):
            layers += [nn.Conv2d(last, out, 3, stride, 1), nn.GroupNorm(8, out), nn.SiLU()]
            last = out
        self.trunk = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten())
        self.middle = nn.Sequential(nn.Linear(16 * last, 128), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, size) for name, size in HEADS.items()})

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the heads read: (N, 128) of pictures (N, 3, 64, 64) in [-1, 1]."""
        found: torch.Tensor = self.middle(self.trunk(pictures))
        return found

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of every head for pictures (N, 3, 64, 64) in [-1, 1]."""
        features = self.features(pictures)
        return {name: head(features) for name, head in self.heads.items()}


def target_classes(scene: Scene) -> dict[str, int]:
    """The right class of every head for a scene whose background is known."""
    if scene.relation in ("right of", "below"):
        scene = scene.mirror()
    layout = {None: 0, "left of": 1, "above": 2}[scene.relation]
    second = _NAMES.index(scene.objects[1]) if len(scene.objects) == 2 else len(_NAMES)
    return {
        "layout": layout,
        "first": _NAMES.index(scene.objects[0]),
        "second": second,
        "ground": _GROUNDS.index(scene.background or ""),
        "size": _SIZES.index(scene.size),
    }


def _pixels(images: Sequence[Any] | NDArray[Any]) -> torch.Tensor:
    """Pictures as (N, 3, 64, 64) in [-1, 1]; uint8 is 0..255, floats are 0..1."""
    stack = np.stack([np.asarray(image) for image in images])
    if stack.ndim != 4 or stack.shape[1:] != (64, 64, 3):
        raise ValueError(f"expected pictures of 64 x 64 x 3, got an array of shape {stack.shape}")
    scale = 255.0 if stack.dtype == np.uint8 else 1.0
    return torch.from_numpy(stack.astype(np.float32) / scale).permute(0, 3, 1, 2) * 2 - 1


class Judge:
    """Reads pictures; made by `ScoreFunction.load()`."""

    FEATURE_WIDTH = 128  # of the features that it reads facts from

    def __init__(self, reader: JudgeNetwork) -> None:
        self._reader = reader.float().eval()

    @classmethod
    def load(cls, file: Path | None = None) -> Judge:
        """The judge that ships with the library, or one in another safetensors file.

        Raises:
            ModelError: the weights are missing or damaged.
        """
        from . import path

        if file is None:
            path()  # its manifest covers the judge too
            return _shipped()
        return cls(_read(file))

    @torch.inference_mode()
    def encode_image(self, picture: torch.Tensor) -> torch.Tensor:
        """The features (WIDTH,) that the heads read, of one picture (3, 64, 64) in [0, 1]."""
        return self._reader.features(picture[None] * 2 - 1)[0]

    @torch.inference_mode()
    def read(self, images: Sequence[Any] | NDArray[Any]) -> list[JudgeReading]:
        """What each picture shows.

        Args:
            images: pictures of 64 x 64 x 3, as PIL images or arrays: uint8 in 0..255 or floats in 0..1.

        Raises:
            ValueError: pictures of another shape.
        """
        if len(images) == 0:
            return []
        logits = self._reader(_pixels(images))
        chances = {name: values.softmax(-1).max(-1) for name, values in logits.items()}
        return [self._reading(chances, index) for index in range(len(images))]

    @staticmethod
    def _reading(chances: dict[str, Any], index: int) -> JudgeReading:
        best = {name: int(chance.indices[index]) for name, chance in chances.items()}
        surety = {name: float(chance.values[index]) for name, chance in chances.items()}
        layout = list(LAYOUTS)[best["layout"]]
        pair = layout != "alone" and best["second"] < len(_NAMES)
        names = (_NAMES[best["first"]], *((_NAMES[best["second"]],) if pair else ()))
        asked = ("layout", "first", "ground", *(("second",) if pair else ("size",)))
        return JudgeReading(
            objects=names,
            positions=LAYOUTS[layout if pair else "alone"],
            background=_GROUNDS[best["ground"]],
            size="normal" if pair else _SIZES[best["size"]],
            confidence=float(np.prod([surety[name] for name in asked])),
        )

    def score(self, images: Sequence[Any] | NDArray[Any], prompts: Sequence[str]) -> list[float]:
        """The fraction of the facts a prompt states that its picture shows, in [0, 1].

        The facts: each object is there (and no other: a picture of one object shows one); of two, the
        relation; the background and the size if the prompt names them.

        Raises:
            PromptError: a prompt that is not a sentence of the grammar.
        """
        if len(images) != len(prompts):
            raise ValueError(f"expected one prompt for each picture, got {len(images)} and {len(prompts)}")
        return [
            sum(confirmed.values()) / len(confirmed)
            for confirmed in (
                check_facts(reading, prompt) for reading, prompt in zip(self.read(images), prompts, strict=True)
            )
        ]


def check_facts(reading: JudgeReading, prompt: str) -> dict[str, bool]:
    """Which facts of a prompt a reading confirms, by name: "object", "first", "second", "relation", ...

    Raises:
        PromptError: the prompt is not a sentence of the grammar.
    """
    scene = parse_prompt(prompt)
    if scene is None:
        raise PromptError(f'expected a sentence like "a cat left of a rocket on a yellow background", got {prompt!r}')
    confirmed: dict[str, bool] = {}
    if scene.relation is None:
        confirmed["object"] = reading.objects == scene.objects
        if scene.size != "normal":
            confirmed["size"] = reading.size == scene.size
    else:
        ordered_scene = scene if scene.relation in ("left of", "above") else scene.mirror()
        places = LAYOUTS["beside" if ordered_scene.relation == "left of" else "stacked"]
        confirmed["first"] = scene.objects[0] in reading.objects
        confirmed["second"] = scene.objects[1] in reading.objects
        confirmed["relation"] = reading.objects == ordered_scene.objects and reading.positions == places
    if scene.background is not None:
        confirmed["background"] = reading.background == scene.background
    return confirmed


def _read(file: Path) -> JudgeNetwork:
    from safetensors.torch import load_file

    try:
        state = {name: value.float() for name, value in load_file(file).items()}
        reader = JudgeNetwork()
        reader.load_state_dict(state)
    except Exception as error:  # safetensors raises its own type, torch RuntimeError
        raise ModelError(f"cannot read the judge's weights from {file}: {error}; reinstall skipstone") from error
    return reader


@lru_cache(maxsize=1)
def _shipped() -> Judge:
    return Judge(_read(_FILE))
