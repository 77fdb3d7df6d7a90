"""Networks of the zoo, and of other people, as problems for the engine: backbone, starting samples and pictures."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import skipstone
from research.zoo.export import load
from research.zoo.network import Denoiser
from research.zoo.schedules import SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, TRAIN_TIMESTEPS, Schedule
from skipstone.engine.requests import Problem
from skipstone.evaluation.prompts import load_prompts
from skipstone.integrations.torch import ModuleBackbone
from skipstone.numerics.tables import Table
from skipstone.registry import parse

ZOO = Path(__file__).parents[1] / "zoo"
KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class ZooNetwork:
    """A finished network of the zoo.

    Args:
        name: Of its folder.
        samples: How many to start.
        seed: Of noise and labels.
    """

    name: str
    samples: int = 64
    seed: int = 1234

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `zoo.json` says."""
        found: dict[str, Any] = json.loads((ZOO / self.name / "zoo.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def module(self) -> Denoiser:
        """The network."""
        return load(ZOO / self.name)

    @cached_property
    def taught(self) -> Schedule:
        """The schedule that it was trained on."""
        return Schedule(**self.facts["schedule"])

    @cached_property
    def schedule(self) -> Any:
        """The same for the engine; EDM's is a table of 1000 levels, even in log sigma, for data of unit deviation."""
        if self.taught.kind == "flow":
            return parse("schedule", f"flow(shift={self.taught.shift})")
        if self.taught.kind == "edm":
            bars = [1.0 / (1.0 + (sigma / SIGMA_DATA) ** 2) for sigma in _edm_sigmas().tolist()]
            return Table(tuple(bars), 1.0)
        return Table(tuple(self.taught.alphas_cumprod().tolist()), 1.0)

    @property
    def family(self) -> str:
        """Prediction type and noise schedule: networks that share both are left out together."""
        kind = self.taught.kind
        if kind == "flow":
            return f"flow / shift {self.taught.shift:g}"
        return kind if kind == "edm" else f"{self.taught.prediction_type} / {kind}"

    @property
    def guidance(self) -> float:
        """Weight of the guidance that the network is run with from outside; 1 where it was distilled for it."""
        return 1.0 if self.facts["distilled_guidances"] else float(self.facts["guidance"])

    def backbone(self) -> ModuleBackbone:
        """The network as a backbone."""
        kind = self.taught.kind
        prediction: Any = {"flow": "flow", "edm": "v"}.get(kind) or KINDS[self.taught.prediction_type]
        guidance = self.guidance if self.facts["counts"] else 1.0
        return ModuleBackbone(self.module, self.schedule, prediction, guidance, self._forward)

    def _forward(
        self, module: torch.nn.Module, x: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        if self.taught.kind == "edm":
            place = timesteps / (TRAIN_TIMESTEPS - 1)
            sigma = (math.log(SIGMA_MIN) + place * math.log(SIGMA_MAX / SIGMA_MIN)).exp()
            return -torch.as_tensor(module(x, 0.25 * sigma.log(), labels))  # in units of SIGMA_DATA, F is -v
        scale = torch.full((len(x),), float(self.facts["guidance"])) if self.facts["distilled_guidances"] else None
        return torch.as_tensor(module(x, timesteps, labels, scale))

    def problems(self, times: Sequence[float]) -> list[Problem]:
        """The samples to denoise at these times."""
        generator = torch.Generator().manual_seed(self.seed)
        counts = self.facts["counts"]
        labels = [torch.randint(0, count, (self.samples,), generator=generator) for count in counts]
        noise = torch.randn((self.samples, *self.facts["shape"]), generator=generator)
        norm = math.hypot(self.schedule.alpha(times[0]), self.schedule.sigma(times[0]))
        return [
            Problem(
                self.schedule, noise[i] * norm, tuple(times), self._condition(labels, i), i, self.backbone().branches
            )
            for i in range(self.samples)
        ]

    def _condition(self, labels: Sequence[torch.Tensor], i: int) -> dict[str, torch.Tensor] | None:
        if not labels:
            return None
        return {"cond": torch.stack([label[i] for label in labels]), "uncond": self.module.unlabelled(1)[0]}

    def picture(self, samples: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1], clipped, of samples (B, ...)."""
        patch = self.facts["patch"]
        pixels = torch.nn.functional.pixel_shuffle(samples, patch) if patch > 1 else samples
        pixels = pixels * (SIGMA_DATA if self.taught.kind == "edm" else 1.0)
        return (pixels / self.facts["scale"] + self.facts["centre"]).clamp(-1, 1)


@dataclass(frozen=True)
class External:
    """What a published network needs to be run: which output, on which schedule, with which guidance and pictures."""

    prediction: Any
    schedule: str  # "linear", or "flow" with t = 1 at the data
    guidance: float
    shape: tuple[int, ...]
    low: float  # pictures lie in [low, 1]


#: By the name of the folder; guidance as its authors use it.
EXTERNAL = {
    "unet_mnist_linear": External("eps", "linear", 1.0, (1, 28, 28), 0.0),
    "rf_cnn_mnist": External("x0", "flow", 2.0, (1, 28, 28), 0.0),
    "velocity_unet_mnist32": External("flow", "flow", 3.0, (1, 32, 32), -1.0),
}


@dataclass(frozen=True)
class ExternalNetwork:
    """A network that others published: a folder with a `net.py` of which `load(folder)` is the module.

    Args:
        folder: With `net.py` and weights, named as in `EXTERNAL`.
        samples: How many to start.
        seed: Of noise and labels.
    """

    folder: Path
    samples: int = 64
    seed: int = 1234

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @property
    def facts(self) -> External:
        """How it is run."""
        return EXTERNAL[self.name]

    @property
    def guidance(self) -> float:
        """Weight of the guidance."""
        return self.facts.guidance

    @property
    def family(self) -> str:
        """Prediction type and noise schedule."""
        kinds = {"eps": "epsilon", "x0": "sample", "flow": "flow"}
        kind = kinds[self.facts.prediction]
        return "flow / shift 1" if kind == "flow" else f"{kind} / {self.facts.schedule}"

    @cached_property
    def module(self) -> torch.nn.Module:
        """The network."""
        spec = importlib.util.spec_from_file_location(f"external_{self.name}", self.folder / "net.py")
        if spec is None or spec.loader is None:
            raise FileNotFoundError(f"expected {self.folder / 'net.py'}")
        source = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(source)
        module: torch.nn.Module = source.load(str(self.folder))
        return module.eval().requires_grad_(False)

    @cached_property
    def schedule(self) -> Any:
        """Of its training."""
        if self.facts.schedule == "flow":
            return parse("schedule", "flow(shift=1)")
        return Table(tuple(Schedule("linear").alphas_cumprod().tolist()), 1.0)

    def backbone(self) -> ModuleBackbone:
        """The network as a backbone."""
        return ModuleBackbone(self.module, self.schedule, self.facts.prediction, self.guidance, self._forward)

    def _forward(
        self, module: torch.nn.Module, x: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        if self.facts.schedule != "flow":
            return torch.as_tensor(module(x, timesteps))
        places = 1.0 - timesteps / TRAIN_TIMESTEPS
        if labels is None:
            return torch.as_tensor(module(x, places))
        known = labels >= 0
        output = torch.empty_like(x)
        if bool(known.any()):
            output[known] = module(x[known], places[known], labels[known])
        if not bool(known.all()):
            output[~known] = module(x[~known], places[~known])
        return output

    def problems(self, times: Sequence[float]) -> list[Problem]:
        """The samples to denoise at these times."""
        generator = torch.Generator().manual_seed(self.seed)
        labels = torch.randint(0, 10, (self.samples,), generator=generator)
        noise = torch.randn((self.samples, *self.facts.shape), generator=generator)
        norm = math.hypot(self.schedule.alpha(times[0]), self.schedule.sigma(times[0]))
        no_label = torch.tensor(-1)
        conditions = [
            {"cond": label, "uncond": no_label} if self.facts.schedule == "flow" else None for label in labels
        ]
        branches = self.backbone().branches
        return [
            Problem(self.schedule, noise[i] * norm, tuple(times), conditions[i], i, branches)
            for i in range(self.samples)
        ]

    def picture(self, samples: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1], clipped, of samples (B, ...)."""
        low = self.facts.low
        return ((samples - low) * (2.0 / (1.0 - low)) - 1.0).clamp(-1, 1)


@dataclass(frozen=True)
class PebbleNetwork:
    """A model that ships with the library, on prompts of its tuning set or of its test set.

    Args:
        name: "pebble" or "pebble-dit", and "@" with the guidance weight if it is not the model's own.
        samples: How many prompts, one seed each.
        seed: Of the first sample; an odd one takes the tuning set.
    """

    name: str
    samples: int = 24
    seed: int = 1234

    @cached_property
    def model(self) -> Any:
        """The model."""
        name, _, guidance = self.name.partition("@")
        return skipstone.Pebble.load(name, float(guidance)) if guidance else skipstone.Pebble.load(name)

    @property
    def module(self) -> torch.nn.Module:
        """The denoiser."""
        module: torch.nn.Module = self.model.unet
        return module

    @property
    def schedule(self) -> Any:
        """Of its training."""
        return self.model.schedule

    @property
    def guidance(self) -> float:
        """Weight of the guidance."""
        return float(self.model.guidance)

    @property
    def family(self) -> str:
        """Prediction type and noise schedule."""
        return "flow / shift 1" if self.name.startswith("pebble-dit") else "v_prediction / squaredcos_cap_v2"

    def backbone(self) -> ModuleBackbone:
        """The denoiser as a backbone."""
        backbone: ModuleBackbone = self.model.backbone
        return backbone

    def problems(self, times: Sequence[float]) -> list[Problem]:
        """The samples to denoise at these times."""
        prompts = load_prompts("pebble-tuning" if self.seed % 2 else "pebble")[: self.samples]
        return [self.model.problem(p.text, self.seed + i, grid=times) for i, p in enumerate(prompts)]

    def picture(self, samples: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1], clipped, of latents (B, ...)."""
        return torch.stack([torch.from_numpy(picture) for picture in self.model.decode(list(samples))]) * 2.0 - 1.0


Network = ZooNetwork | ExternalNetwork | PebbleNetwork


def find_network(name: str, samples: int, seed: int = 1234) -> Network:
    """The zoo's network of this name, the model that ships, or the network in a folder of somebody else's."""
    folder = Path(name)
    if name.startswith("pebble"):
        return PebbleNetwork(name, samples, seed)
    return ExternalNetwork(folder, samples, seed) if folder.name in EXTERNAL else ZooNetwork(name, samples, seed)


def reference_times(schedule: Any, count: int) -> tuple[float, ...]:
    """Times of a converged run: `count` even in asinh(sigma / alpha) from where noise begins, `count` even in t.

    Neither does alone: even times leap over sigma / alpha from 20,000 to 100 in one step, and grids of noise levels
    count from 80.
    """
    loudest, quietest = min(-schedule.clock(1.0), math.log(1e6)), -schedule.clock(1.0 / TRAIN_TIMESTEPS)
    first, last = math.asinh(math.exp(loudest)), math.asinh(math.exp(quietest))
    levels = [math.log(math.sinh(first + (last - first) * i / (count - 1))) for i in range(1, count)]
    even = parse("grid", "trailing").times(schedule, count)
    return tuple(sorted({*even, *(schedule.time(-level) for level in levels)}, reverse=True))


def _edm_sigmas() -> torch.Tensor:
    place = torch.linspace(0, 1, TRAIN_TIMESTEPS, dtype=torch.float64)
    return (math.log(SIGMA_MIN) + place * math.log(SIGMA_MAX / SIGMA_MIN)).exp()
