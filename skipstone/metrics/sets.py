"""One number for many pictures: FID, KID, CLIP score, FVD, by torchmetrics; the weights are yours to bring."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors import MetricError
from ..registry import register
from ..settings import check_settings
from .base import SetMetric
from .weights import Weights, missing

if TYPE_CHECKING:
    from torch import Tensor

INCEPTION = Weights(
    ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
CLIP = Weights(
    ("clip-vit-base-patch16", "clip-vit-large-patch14"),
    "https://huggingface.co/openai/clip-vit-base-patch16 (all files but those of TensorFlow and Flax)",
    marker="config.json",
)
I3D = Weights(
    ("i3d_torchscript.pt",),
    "https://github.com/universome/stylegan-v (its metrics/frechet_video_distance.py has the link)",
)
BATCH = 16  # pictures that go through a network at once
SUBSET = 1000  # pictures of one subset of KID


@dataclass(frozen=True)
class InceptionDistance(SetMetric):
    """Base of distances between two sets of pictures in the features of Inception v3.

    Args:
        weights: File of the Inception that FID was published with, or the folder that has it; empty looks in the
            folder that the environment variable SKIPSTONE_WEIGHTS names, then where torch keeps its downloads.
    """

    weights: str = ""
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    of: ClassVar[Literal["any", "picture", "video"]] = "picture"
    by_default: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)

    def missing(self) -> str:
        return missing(self.name, INCEPTION, self.weights, "torchmetrics", "torch-fidelity")

    def measure(self, pictures: Sequence[Any], prompts: Sequence[str], references: Sequence[Any]) -> float:
        check_sets(self, pictures, references)
        if why := self.missing():
            raise MetricError(why)
        from .networks import load_inception

        return self.distance(load_inception(INCEPTION.find(self.name, self.weights)), pictures, references)

    def distance(self, network: Any, pictures: Sequence[Any], references: Sequence[Any]) -> float:
        """The distance in the features of this network, a torch module from 8-bit pictures (n, 3, h, w) to (n, d)."""
        raise NotImplementedError


@register("metric")
@dataclass(frozen=True)
class FID(InceptionDistance):
    """Fréchet distance of two sets of pictures in the features of Inception v3, 0 for the same set.

    With fewer than 2,049 pictures the covariance of its 2,048 features has no full rank, and the distance is
    biased upwards: compare rows of equally many pictures, and see `kid`.

    Args:
        weights: File of the Inception that FID was published with, or the folder that has it; empty looks in the
            folder that the environment variable SKIPSTONE_WEIGHTS names, then where torch keeps its downloads.

    Raises:
        MetricError: no weights or packages (torchmetrics and torch-fidelity), fewer than two pictures.

    References: Heusel et al. 2017, arXiv 1706.08500.
    """

    name: ClassVar[str] = "fid"

    def distance(self, network: Any, pictures: Sequence[Any], references: Sequence[Any]) -> float:
        return frechet_distance(network, pictures, references)


@register("metric")
@dataclass(frozen=True)
class KID(InceptionDistance):
    """Kernel distance of two sets of pictures in the features of Inception v3: unbiased, about 0 for like sets.

    The squared maximum mean discrepancy under a cubic kernel: of all pictures at once up to a thousand, above that
    the mean over a hundred subsets of a thousand, drawn with a fixed seed. Not multiplied by 1,000.

    Args:
        weights: As of `fid`.

    Raises:
        MetricError: as `fid`.

    References: Binkowski et al. 2018, arXiv 1801.01401.
    """

    name: ClassVar[str] = "kid"

    def distance(self, network: Any, pictures: Sequence[Any], references: Sequence[Any]) -> float:
        return kernel_distance(network, pictures, references)


@register("metric")
@dataclass(frozen=True)
class ClipScore(SetMetric):
    """Mean of 100 cos(picture, prompt) in the features of CLIP, at least 0: whether pictures show what was asked for.

    CLIP reads 77 tokens: what a longer prompt has after them is not judged. Numbers of two CLIPs do not compare.

    Args:
        weights: Folder of a CLIP in the format of transformers; empty looks for clip-vit-base-patch16, then
            clip-vit-large-patch14, in the folder that the environment variable SKIPSTONE_WEIGHTS names.

    Raises:
        MetricError: no weights or packages, or not one prompt a picture.

    References: Hessel et al. 2021, arXiv 2104.08718.
    """

    weights: str = ""
    name: ClassVar[str] = "clip_score"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    of: ClassVar[Literal["any", "picture", "video"]] = "picture"
    compares: ClassVar[bool] = False
    by_default: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)

    def missing(self) -> str:
        return missing(self.name, CLIP, self.weights, "torchmetrics", "transformers")

    def measure(self, pictures: Sequence[Any], prompts: Sequence[str], references: Sequence[Any]) -> float:
        if len(pictures) != len(prompts) or not pictures:
            raise MetricError(f"clip_score: expected one prompt a picture, got {len(prompts)} for {len(pictures)}.")
        if why := self.missing():
            raise MetricError(why)
        from .networks import compute_clip_score

        return compute_clip_score(CLIP.find(self.name, self.weights), uint8_batches(pictures, BATCH), prompts)


@register("metric")
@dataclass(frozen=True)
class FVD(SetMetric):
    """Fréchet distance of two sets of videos in the features of I3D, 0 for the same set.

    As StyleGAN-V measures it: the network, trained on Kinetics-400, is given all frames of a video at once and
    scales them itself. Its 400 features want hundreds of videos: with fewer the distance is biased upwards.

    Args:
        weights: TorchScript file of that I3D, or the folder that has it; empty looks in the folder that the
            environment variable SKIPSTONE_WEIGHTS names, then where torch keeps its downloads.

    Raises:
        MetricError: no weights or packages, fewer than two videos, pictures, or videos too short for the network.

    References: Unterthiner et al. 2018, arXiv 1812.01717; Skorokhodov et al. 2022, arXiv 2112.14683.
    """

    weights: str = ""
    name: ClassVar[str] = "fvd"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    of: ClassVar[Literal["any", "picture", "video"]] = "video"
    by_default: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)

    def missing(self) -> str:
        return missing(self.name, I3D, self.weights, "torchmetrics")

    def measure(self, pictures: Sequence[Any], prompts: Sequence[str], references: Sequence[Any]) -> float:
        check_sets(self, pictures, references, dimensions=4)
        if why := self.missing():
            raise MetricError(why)
        import torch

        from .networks import load_i3d

        network = load_i3d(I3D.find(self.name, self.weights))
        try:
            return frechet_distance(network, pictures, references, batch=1)
        except (RuntimeError, torch.jit.Error) as e:  # the second is not of the first
            raise MetricError(
                f"fvd: the network cannot read videos of {pictures[0].shape} (it was made for 16 frames): "
                f"{str(e).strip().splitlines()[-1][:200]}"
            ) from None


def check_sets(metric: SetMetric, pictures: Sequence[Any], references: Sequence[Any], dimensions: int = 3) -> None:
    """Raise MetricError unless there are at least two on both sides, of the right dimensions."""
    if min(len(pictures), len(references)) < 2:
        raise MetricError(f"{metric.name}: expected two or more on both sides, got {len(pictures)}, {len(references)}.")
    wrong = next((p.shape for p in (*pictures, *references) if p.ndim != dimensions), None)
    if wrong is not None:
        kind = "videos (frames, height, width, 3)" if dimensions == 4 else "pictures (height, width, 3)"
        raise MetricError(f"{metric.name}: expected {kind}, got {wrong}.")


def uint8_batches(pictures: Sequence[Any], batch: int) -> Iterator[Tensor]:
    """Batches of 8 bits, channels first: (n, 3, height, width), or (n, 3, frames, height, width) of videos.

    Pictures are floats in [0, 1], or of 8 bits already.
    """
    import numpy as np
    import torch

    for start in range(0, len(pictures), batch):
        group = pictures[start : start + batch]
        if len({p.shape for p in group}) > 1:
            yield from (one for each in group for one in uint8_batches([each], 1))
            continue
        found = [np.asarray(p) for p in group]
        bits = [p if p.dtype == np.uint8 else np.rint(p.astype(np.float64).clip(0, 1) * 255) for p in found]
        yield torch.from_numpy(np.stack(bits).astype(np.uint8)).movedim(-1, 1).contiguous()


def frechet_distance(network: Any, pictures: Sequence[Any], references: Sequence[Any], batch: int = BATCH) -> float:
    """Fréchet distance between Gaussians fitted to the features of two sets.

    Args:
        network: A torch module from batches of `uint8_batches` to features (n, d).
        pictures, references: The two sets.
        batch: At once.
    """
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    with torch.no_grad():
        # torchmetrics would guess the shape of an input to find the number of features.
        network.num_features = network(next(uint8_batches(pictures, 1))).shape[-1]
        measured = FrechetInceptionDistance(feature=network)
        _update(measured, pictures, references, batch)
        return max(0.0, float(measured.compute()))


def kernel_distance(network: Any, pictures: Sequence[Any], references: Sequence[Any]) -> float:
    """Squared maximum mean discrepancy of the features of two sets; arguments as of `frechet_distance`."""
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    fewest = min(len(pictures), len(references))
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps features in memory
        torch.manual_seed(0)
        whole = fewest <= SUBSET
        measured = KernelInceptionDistance(
            feature=network, subsets=1 if whole else 100, subset_size=fewest if whole else SUBSET
        )
        _update(measured, pictures, references, BATCH)
        return float(measured.compute()[0])


def _update(measured: Any, pictures: Sequence[Any], references: Sequence[Any], batch: int) -> None:
    """Give both sets to a metric of torchmetrics."""
    for group, real in ((pictures, False), (references, True)):
        for images in uint8_batches(group, batch):
            measured.update(images, real=real)
