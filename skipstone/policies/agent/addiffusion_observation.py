"""The observation that AdDiffusion published: features of picture and prompt, time, and eight qualities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from ...engine.contracts import Run
from ...engine.signals import ImageFeatures, PromptFeatures, signal_key
from ...errors import SpecError
from ...registry import spell
from .actions import PLACES_PER_STEP

IMAGE, TEXT, TIMESTEP, QUALITY = PARTS = ("image", "text", "timestep", "quality")
NUM_IMAGES = 3  # images that qualities are made of: this one and the two before
NUM_FREQUENCIES = 64  # of the sines and cosines of time
NUM_TRAIN_TIMESTEPS = 1000.0  # t of the engine, 0..1, in the timesteps that networks are taught
PRICE_ENTRY = "log price"
QUALITY_ENTRIES = (
    "image-text", "image-text change", "image likeness", "last image likeness", "progress", "calls", PRICE_ENTRY,
    "log last",
)  # fmt: skip


class ObservationBatch(NamedTuple):
    """Runs that are about to decide, one a row; what is not known yet is nan.

    Args:
        place: (n,) places of the base schedule behind.
        places: (n,) of the base schedule, in all.
        calls: (n,) made so far, the one just made included.
        price: (n,) of a call.
        angles: (n, HISTORY_LENGTH + 2) of the last calls, newest first.
        linear_errors, repeat_errors: (n, HISTORY_LENGTH) the signals of these names at the last calls, newest first.
        ahead: (n,) angle at which the base schedule's next step would land.
        accumulated_error: (n,) sum of squares of the errors of the steps so far, by `path_curvature`.
        prompt: (n, width) mean text states.
        t, pictures, words: What `PublishedObservation` needs; None where it needs nothing.
    """

    place: Any
    places: Any
    calls: Any
    price: Any
    angles: Any
    linear_errors: Any
    repeat_errors: Any
    ahead: Any
    accumulated_error: Any
    prompt: Any
    t: Any = None
    pictures: Any = None
    words: Any = None


@dataclass(frozen=True)
class PublishedObservation:
    """phi = [image | text | timestep | quality], 768 + 768 + 128 + 8 = 1,672 numbers with CLIP ViT-L/14.

    - image: features of the picture that the clean estimate of this call decodes to, of length 1.
    - text: features of the prompt, of length 1. Of Pebble's own feature extractor its mean text state.
    - timestep: sin and cos of 1000 t 10000^(-i / 63), i = 0..63, as published: nothing of a sample.
    - quality: the cosine of image and text where both live in one space, else 0; its change since the last image; the
      cosine of this image and the last one, and that of the last one and the one before; the share of the base
      schedule that is behind; calls over its calls; log of the price of a call; log of `repeat_errors`.

    Missing numbers are 0, as published. Of the published qualities the first four were those of the reward of the
    step before: score, change of aesthetics, change of ImageReward, likeness of the last two pictures by DINO. Where
    nobody computed a reward, as in use, they were 0, so that agents saw other numbers than they had learnt on. Ours
    are made of images and prompts, the same in training and in use; the two paddings hold the price and
    `repeat_errors`.

    Args:
        by: The feature extractor, as of the signal `look`: "" the model's own, else the folder or id of a CLIP.
        image, text: Widths of the features.
        fee: What an image costs, in full calls of the network: a decoding and a pass of the image encoder. There is one
            at every call. The prompt is read once in a run, as a pipeline's own encoder reads it, at no charge.
    """

    by: str = ""
    image: int = 0
    text: int = 0
    fee: float = 0.0

    def names(self, part: str, placed: bool) -> list[str]:
        """Names of a part's entries; `placed` if the price is already seen elsewhere, under its own name."""
        if part == QUALITY:
            return [name if name == PRICE_ENTRY and not placed else f"{part} {name}" for name in QUALITY_ENTRIES]
        return [f"{part} {k}" for k in range({IMAGE: self.image, TEXT: self.text, TIMESTEP: 2 * NUM_FREQUENCIES}[part])]

    def needs(self, parts: frozenset[str]) -> frozenset[str]:
        """Signals that these parts are made of."""
        images = {spell(ImageFeatures(self.by))} if parts & {IMAGE, QUALITY} else set()
        return frozenset(images | ({spell(PromptFeatures(self.by))} if parts & {TEXT, QUALITY} else set()))

    def count_images(self, run: Run) -> int:
        """Images that the run has decoded."""
        first = signal_key(spell(ImageFeatures(self.by)), 0)
        return sum(first in a.signals for a in run.attempts)

    def observe(self, run: Run, parts: frozenset[str]) -> dict[str, Any]:
        """Fields of `ObservationBatch` for a run: t (1,), pictures (1, NUM_IMAGES, image) newest first,
        words (1, text).

        Raises:
            SpecError: no features, or features of other widths.
        """
        import numpy as np

        assert run.pending is not None
        pictures, words = np.full((1, NUM_IMAGES, self.image), np.nan), np.zeros((1, self.text))
        if parts & {IMAGE, QUALITY}:
            for k, features in enumerate(self._recent_features(run, ImageFeatures(self.by), self.image, NUM_IMAGES)):
                pictures[0, k] = features
        if parts & {TEXT, QUALITY}:
            words[0] = self._recent_features(run, PromptFeatures(self.by), self.text, 1)[0]
        return {"t": np.array([run.pending.t]), "pictures": pictures, "words": words}

    def _recent_features(self, run: Run, signal: ImageFeatures | PromptFeatures, width: int, most: int) -> list[Any]:
        """The last values of a signal of several, newest first."""
        spec = spell(signal)
        recent = [a.signals for a in reversed(run.attempts) if signal_key(spec, 0) in a.signals][:most]
        if not recent:
            raise SpecError(
                f"This agent needs features of pictures and prompts (`{spell(signal)}`), and has none here: recorded "
                f"runs have nothing to decode (say live: true), and samples of a pipeline are not decoded on the "
                f"way (run its model by `skipstone generate`, if it is of Pebble's format). Or leave out "
                f"{', '.join(PARTS)}."
            )
        if any(signal_key(spec, width) in signals or signal_key(spec, width - 1) not in signals for signals in recent):
            raise SpecError(
                f"This agent needs features of width {width} (`{spell(signal)}`), and here are others: it was trained "
                f"on another model, or with another feature extractor. Train one here."
            )
        return [_values(spec, width)(signals) for signals in recent]

    def features(self, part: str, batch: ObservationBatch) -> Any:
        """Return the entries of a part, as an array (n, entries)."""
        import numpy as np

        if part == TIMESTEP:
            rates = NUM_TRAIN_TIMESTEPS * 10000.0 ** (-np.arange(NUM_FREQUENCIES) / (NUM_FREQUENCIES - 1))
            angles = batch.t[:, None] * rates
            return np.concatenate([np.sin(angles), np.cos(angles)], 1)
        if part == IMAGE:
            return _normalize(batch.pictures[:, 0])
        return _normalize(batch.words) if part == TEXT else self._quality(batch)

    def _quality(self, batch: ObservationBatch) -> Any:
        import numpy as np

        pictures, words = _normalize(batch.pictures), _normalize(batch.words)
        fits = np.zeros(pictures.shape[:2])
        if self.by:  # a CLIP: the two live in one space
            fits = (pictures * words[:, None]).sum(-1)
        known = ~np.isnan(batch.pictures[:, :, 0])
        like = (pictures[:, :-1] * pictures[:, 1:]).sum(-1)
        steps = (batch.places - 1) / PLACES_PER_STEP
        last = np.nan_to_num(np.log(10.0 * batch.repeat_errors[:, 0] + 1e-6))
        columns = (
            fits[:, 0], np.where(known[:, 1], fits[:, 0] - fits[:, 1], 0.0), like[:, 0], like[:, 1],
            batch.place / (batch.places - 1), batch.calls / steps, np.log(batch.price), last,
        )  # fmt: skip
        return np.stack(columns, 1)


@lru_cache(maxsize=16)
def _values(spec: str, count: int) -> Callable[[Any], Any]:
    """Takes the first values of a signal of several out of an attempt's: there are many, and it is done often."""
    return itemgetter(*(signal_key(spec, k) for k in range(count)))


def _normalize(features: Any) -> Any:
    """Features of length 1 along the last axis; 0 where they are unknown."""
    import numpy as np

    known = np.nan_to_num(features)
    return known / np.maximum(np.linalg.norm(known, axis=-1, keepdims=True), 1e-12)
