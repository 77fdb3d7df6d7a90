"""Networks of other people's metrics, loaded from files that the user brings. Imports torch: load lazily."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import MetricError

T = TypeVar("T")


class InceptionFeatures(nn.Module):
    """Inception v3 as FID was published with it, from 8-bit pictures to 2,048 features; torch-fidelity's port.

    It is not left to torchmetrics to build: that resizes pictures in a way of its own.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        port = import_module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        self.net = port("inception", ["2048"], feature_extractor_weights_path=str(path))
        self.net.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(images)[0]
        return found


class VideoFeatures(nn.Module):
    """I3D as TorchScript, from 8-bit videos (n, 3, frames, height, width) to features."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.net = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]

    def forward(self, videos: Tensor) -> Tensor:
        found: Tensor = self.net(videos.float(), rescale=True, resize=True, return_features=True)
        return found


class ClipFeatures(nn.Module):
    """A CLIP whose features are tensors, as they were before transformers 5."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.config = net, net.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return _features(self.net.get_image_features(pixels))

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return _features(self.net.get_text_features(ids, mask))


class ClipProcessor:
    """CLIP's processor, which cuts long prompts itself and keeps the end token that their features are read at.

    torchmetrics would cut it off with the rest.
    """

    def __init__(self, processor: Any, longest: int) -> None:
        self.processor, self.longest = processor, longest

    def __call__(self, **inputs: Any) -> Any:
        cut = {"truncation": True, "max_length": self.longest} if "text" in inputs else {}
        return self.processor(**inputs, **cut)


def _features(found: Any) -> Tensor:
    tensor: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return tensor


@lru_cache(maxsize=1)
def load_inception(path: Path) -> InceptionFeatures:
    """Raises MetricError for a file that is something else."""
    return _load_or_raise("fid", path, lambda: InceptionFeatures(path))


@lru_cache(maxsize=1)
def load_i3d(path: Path) -> VideoFeatures:
    """Raises MetricError for a file that is something else."""
    return _load_or_raise("fvd", path, lambda: VideoFeatures(path))


def compute_clip_score(folder: Path, batches: Iterator[Tensor], prompts: Sequence[str]) -> float:
    """CLIP score of 8-bit pictures and their prompts. Raises MetricError for a folder that is something else."""
    from torchmetrics.multimodal.clip_score import CLIPScore

    net, processor = _load_clip(folder)
    measured, left = CLIPScore(lambda: (net, processor)), list(prompts)
    with torch.no_grad():
        for images in batches:
            measured.update(list(images), left[: len(images)])
            del left[: len(images)]
        return float(measured.compute())


@lru_cache(maxsize=1)
def _load_clip(folder: Path) -> tuple[ClipFeatures, ClipProcessor]:
    from transformers import CLIPModel, CLIPProcessor

    def load() -> tuple[ClipFeatures, ClipProcessor]:
        net = CLIPModel.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        return ClipFeatures(net), ClipProcessor(processor, net.config.text_config.max_position_embeddings)

    return _load_or_raise("clip_score", folder, load)


def _load_or_raise(metric: str, path: Path, load: Callable[[], T]) -> T:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return load()
    except Exception as e:  # whatever pickle, zip, torch and transformers raise of files that are something else
        first = str(e).strip().split("\n", 1)[0][:200]
        raise MetricError(f"{metric}: {path} cannot be loaded: {first}") from None
