"""Noise schedules and prediction types, in the words of diffusers.

A noisy sample is `alpha * clean + sigma * noise`. Three kinds of schedule:

- tables of betas ("linear", "scaled_linear", "squaredcos_cap_v2"): timesteps 0 to 999, alpha^2 + sigma^2 = 1;
- "flow": rectified flow, alpha = 1 - sigma, timestep = 1000 sigma, the network says noise - clean;
- "edm": alpha = 1, sigma from 80 to 0.002, the network is the F of Karras et al. (arXiv:2206.00364).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

TRAIN_TIMESTEPS = 1000
#: EDM's constants, as in diffusers' EDMEulerScheduler.
SIGMA_MIN, SIGMA_MAX, SIGMA_DATA, RHO = 0.002, 80.0, 0.5, 7.0


@dataclass(frozen=True)
class Noising:
    """A batch made noisy: what the network is given, what it should say, and the weight of each sample's error."""

    inputs: torch.Tensor
    timestep: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class Schedule:
    """A noise schedule with its prediction type.

    Args:
        kind: "linear", "scaled_linear", "squaredcos_cap_v2", "flow" or "edm".
        prediction_type: "epsilon", "sample", "v_prediction"; "flow" and "edm" have one of their own.
        beta_start, beta_end: of the tables "linear" and "scaled_linear".
        zero_snr: rescale the betas so that the last timestep is pure noise (arXiv:2305.08891).
        shift: of "flow": sigma -> shift sigma / (1 + (shift - 1) sigma).
    """

    kind: str
    prediction_type: str = "epsilon"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_snr: bool = False
    shift: float = 1.0

    @property
    def tabled(self) -> bool:
        """Whether timesteps are whole numbers of a table of betas."""
        return self.kind not in ("flow", "edm")

    def alphas_cumprod(self) -> torch.Tensor:
        """The table of alpha^2, float64 (1000,)."""
        count = TRAIN_TIMESTEPS
        if self.kind == "linear":
            betas = torch.linspace(self.beta_start, self.beta_end, count, dtype=torch.float64)
        elif self.kind == "scaled_linear":
            betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, count, dtype=torch.float64) ** 2
        else:
            bar = torch.cos((torch.arange(count + 1, dtype=torch.float64) / count + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
        products = (1 - betas).cumprod(0)
        if not self.zero_snr:
            return products
        root = products.sqrt()
        return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2

    def alpha_sigma(self, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma, float32, at a place: a timestep of a table, else sigma itself."""
        if self.kind == "edm":
            return torch.ones_like(place), place
        if self.kind == "flow":
            return 1 - place, place
        square = self.alphas_cumprod()[place.long()]
        return square.sqrt().float(), (1 - square).sqrt().float()

    def draw(self, spread: torch.Tensor) -> torch.Tensor:
        """Places to train at, from numbers spread evenly over [0, 1)."""
        if self.tabled:
            return (spread * TRAIN_TIMESTEPS).floor()
        if self.kind == "flow":
            return self.shifted(spread.clamp(1e-4, 1 - 1e-4))
        normal = torch.special.ndtri(spread.clamp(1e-4, 1 - 1e-4))
        sigma = (1.2 * normal - 1.2).exp()
        # A fifth evenly in log sigma: a short training should know both ends.
        even = (math.log(SIGMA_MIN) + spread * math.log(SIGMA_MAX / SIGMA_MIN)).exp()
        rare = torch.arange(len(spread)) % 5 == 0
        return torch.where(rare, even, sigma).clamp(SIGMA_MIN, SIGMA_MAX)

    def shifted(self, sigma: torch.Tensor) -> torch.Tensor:
        """A flow's sigma after the resolution shift."""
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def inputs(self, noisy: torch.Tensor, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network is given for a noisy sample at a place: the (scaled) sample and the timestep."""
        if self.kind == "edm":
            return noisy / _wide((place**2 + SIGMA_DATA**2).sqrt(), noisy), 0.25 * place.log()
        return noisy, place * TRAIN_TIMESTEPS if self.kind == "flow" else place

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, spread: torch.Tensor) -> Noising:
        """Make a batch noisy at places drawn from `spread` (B,)."""
        place = self.draw(spread)
        alpha, sigma = (_wide(part, clean) for part in self.alpha_sigma(place))
        noisy = alpha * clean + sigma * noise
        given, timestep = self.inputs(noisy, place)
        if self.kind == "edm":
            total = sigma**2 + SIGMA_DATA**2
            target = (clean - SIGMA_DATA**2 / total * noisy) * total.sqrt() / (sigma * SIGMA_DATA)
        elif self.kind == "flow":
            target = noise - clean
        elif self.prediction_type == "v_prediction":
            target = alpha * noise - sigma * clean
        else:
            target = clean if self.prediction_type == "sample" else noise
        return Noising(given, timestep, target, self._weight(alpha, sigma).flatten())

    def _weight(self, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Weight of a sample's squared error: 1, but for a clean prediction min(SNR, 5) (arXiv:2303.09556)."""
        if self.prediction_type == "sample" and self.tabled:
            return (alpha**2 / sigma**2).clamp(0.05, 5.0)
        return torch.ones_like(sigma)

    def split(self, said: torch.Tensor, noisy: torch.Tensor, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The clean sample and the noise that a network's output stands for."""
        alpha, sigma = (_wide(part, noisy) for part in self.alpha_sigma(place))
        if self.kind == "edm":
            total = sigma**2 + SIGMA_DATA**2
            clean = SIGMA_DATA**2 / total * noisy + sigma * SIGMA_DATA / total.sqrt() * said
        elif self.kind == "flow":
            return noisy - sigma * said, noisy + alpha * said
        elif self.prediction_type == "v_prediction":
            return alpha * noisy - sigma * said, sigma * noisy + alpha * said
        elif self.prediction_type == "epsilon":
            return (noisy - sigma * said) / alpha, said
        else:
            clean = said
        return clean, (noisy - alpha * clean) / sigma

    def places(self, steps: int) -> torch.Tensor:
        """Where to call the network in a run of `steps` calls, from noise to data."""
        if self.kind == "edm":
            ramp = torch.linspace(0, 1, steps)
            high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
            return torch.as_tensor((high + ramp * (low - high)) ** RHO)
        if self.kind == "flow":
            return self.shifted(torch.linspace(1, 1 / steps, steps))
        even = torch.arange(TRAIN_TIMESTEPS, 0, -TRAIN_TIMESTEPS / steps).round() - 1
        if self.zero_snr:
            return even
        # Without zero SNR, as diffusers' "leading" spacing: an epsilon at the very end says nothing of the picture.
        return (torch.arange(steps - 1, -1, -1) * (TRAIN_TIMESTEPS // steps) + 1).float()

    def scheduler_config(self) -> dict[str, Any]:
        """What `scheduler_config.json` says, for a deterministic diffusers scheduler."""
        if self.kind == "flow":
            name = "FlowMatchEulerDiscreteScheduler"
            return {"_class_name": name, "num_train_timesteps": TRAIN_TIMESTEPS, "shift": self.shift}
        if self.kind == "edm":
            return {
                "_class_name": "EDMEulerScheduler",
                "sigma_min": SIGMA_MIN,
                "sigma_max": SIGMA_MAX,
                "sigma_data": SIGMA_DATA,
                "sigma_schedule": "karras",
                "prediction_type": "epsilon",
                "rho": RHO,
            }
        return {
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": TRAIN_TIMESTEPS,
            "beta_schedule": self.kind,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "prediction_type": self.prediction_type,
            "rescale_betas_zero_snr": self.zero_snr,
            "timestep_spacing": "trailing" if self.zero_snr else "leading",
            "steps_offset": 0 if self.zero_snr else 1,
            "clip_sample": False,
            "set_alpha_to_one": False,
        }


def _wide(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One number a sample, shaped to multiply samples."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
