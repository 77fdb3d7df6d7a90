"""LPIPS: distance of pictures as deep features see it. The networks are ours to write, their weights yours to bring."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors import MetricError, SpecError
from ..registry import register
from ..settings import check_settings, shorten
from .base import Metric, Sample, get_image_pair
from .weights import Weights, missing

if TYPE_CHECKING:
    from typing import Self

_URL = "https://download.pytorch.org/models/"
# torchvision's files; the older name of each holds the same numbers.
BACKBONES = {
    "alex": Weights(("alexnet-owt-7be5be79.pth", "alexnet-owt-4df8aa71.pth"), f"{_URL}alexnet-owt-7be5be79.pth"),
    "squeeze": Weights(
        ("squeezenet1_1-b8a52dc0.pth", "squeezenet1_1-f364aa15.pth"), f"{_URL}squeezenet1_1-b8a52dc0.pth"
    ),
    "vgg": Weights(("vgg16-397923af.pth",), f"{_URL}vgg16-397923af.pth"),
}
# Layers of each network after which its features are compared.
LAYER_INDICES = {"alex": (1, 4, 7, 9, 11), "squeeze": (1, 4, 7, 9, 10, 11, 12), "vgg": (3, 8, 15, 22, 29)}
# Pictures in [-1, 1] to what the networks were trained on: with the rounding of the authors.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
MIN_SIZE = 32  # pixels: below, the last features of some networks have no pixel left


@register("metric")
@dataclass(frozen=True)
class LPIPS(Metric):
    """Learned perceptual distance to the full run, version 0.1: 0 for identical pictures.

    Numbers of two networks do not compare; `alex` is what its authors advise and most papers report. The linear
    heads come with torchmetrics, the network's ImageNet weights do not. A video's is the mean over its frames.

    Args:
        net: alex, squeeze or vgg.
        weights: File of torchvision's weights of that network, or the folder that has it; empty looks in the folder
            that the environment variable SKIPSTONE_WEIGHTS names, then where torch keeps its downloads.

    Raises:
        SpecError: an unknown network.
        MetricError: no weights, or pictures smaller than 32 pixels.

    References: Zhang et al. 2018, arXiv 1801.03924.
    """

    net: str = "alex"
    weights: str = ""
    name: ClassVar[str] = "lpips"
    takes_frames: ClassVar[bool] = True
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    span: ClassVar[tuple[float, float]] = (0.0, math.inf)
    by_default: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)
        if self.net not in BACKBONES:
            raise SpecError(f"lpips: expected a net among {', '.join(BACKBONES)}, got {shorten(self.net)}.")

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        return tuple(cls(net) for net in BACKBONES)

    def missing(self) -> str:
        return missing(self.name, BACKBONES[self.net], self.weights, "torchmetrics")

    def measure(self, sample: Sample) -> float:
        import torch

        ours, theirs = (torch.from_numpy(a).float() for a in get_image_pair(self, sample))
        if min(ours.shape[-3:-1]) < MIN_SIZE:
            size = tuple(ours.shape[-3:-1])
            raise MetricError(f"lpips: expected pictures of at least {MIN_SIZE} x {MIN_SIZE}, got {size}.")
        if why := self.missing():
            raise MetricError(why)
        network, heads = load_network(self.net, BACKBONES[self.net].find(self.name, self.weights))
        both = torch.stack([ours, theirs]).reshape(-1, *ours.shape[-3:]).movedim(-1, 1) * 2 - 1
        with torch.no_grad():
            return float(distance(network, heads, LAYER_INDICES[self.net], both))


def distance(network: Any, heads: list[Any], taps: tuple[int, ...], both: Any) -> Any:
    """LPIPS of the first half of a batch (n, 3, height, width) in [-1, 1] to the second, in the mean."""
    import torch

    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
    x, total = (both - shift) / scale, torch.zeros(())
    for place, layer in enumerate(network):
        x = layer(x)
        if place in taps:
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            ours, theirs = unit.chunk(2)
            weighed = torch.nn.functional.conv2d((ours - theirs).square(), heads[taps.index(place)])
            total = total + weighed.mean()
    return total


@lru_cache(maxsize=3)
def load_network(net: str, path: Path) -> tuple[Any, list[Any]]:
    """A network with the weights of a file, and the linear heads of version 0.1. Raises MetricError."""
    import torch

    network = build_backbone(net)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        own = {key.removeprefix("features."): v for key, v in found.items() if key.startswith("features.")}
        network.load_state_dict(own)
    except Exception as e:  # whatever pickle, zip and torch raise of files that are something else
        first = str(e).split("\n", 1)[0][:200]
        raise MetricError(f"lpips: {path} is not torchvision's weights of the net {net!r}: {first}") from None
    read = torch.load(find_heads(net), map_location="cpu", weights_only=True)
    return network.eval().requires_grad_(False), [read[key] for key in sorted(read)]


def find_heads(net: str) -> Path:
    """The linear heads that come with torchmetrics: byte for byte those of the authors' version 0.1."""
    spec = find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise MetricError("lpips: not installed: torchmetrics. Type: pip install torchmetrics")
    path = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / f"{net}.pth"
    if not path.is_file():
        raise MetricError(
            f"lpips: expected torchmetrics to bring {path}, which is not there. Type: pip install -U torchmetrics"
        )
    return path


def build_backbone(net: str) -> Any:
    """The convolutions of a network, numbered as torchvision numbers them, with random weights."""
    from torch.nn import Conv2d, MaxPool2d, ReLU, Sequential

    if net == "squeeze":
        from .squeezenet import squeezenet

        return squeezenet()
    layers: list[Any] = []
    if net == "alex":
        plan = [(3, 64, 11, 4, 2), None, (64, 192, 5, 1, 2), None]
        plan += [(192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1), None]
        pool = MaxPool2d(3, 2)
    else:
        widths = [3, 64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]
        real = [w for w in widths if w]
        steps = iter(pairwise(real))
        plan = [(*next(steps), 3, 1, 1) if w else None for w in widths[1:]]
        pool = MaxPool2d(2, 2)
    for step in plan:
        layers += [pool] if step is None else [Conv2d(*step), ReLU()]
    return Sequential(*layers)
