"""Points of a noise schedule as tensors, and the deterministic step between two of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from skipstone.errors import SpecError
from skipstone.numerics.schedule import Schedule
from skipstone.numerics.sizes import shift_time
from skipstone.numerics.tables import TableSchedule

SHIFT_POINTS = 1001  # of a schedule, between which places are moved linearly
LAST_SHARE = 1 - 1e-6  # of the way, below 1 in float32


@dataclass(frozen=True)
class Levels:
    """Evenly spaced times from data (index 0) to noise (index n), as the grid `trailing` has them.

    Args:
        alpha, sigma: Scales of picture and noise, (n + 1,).
        timestep: What the network is given, (n + 1,); of index 0 nothing is asked.
    """

    alpha: torch.Tensor
    sigma: torch.Tensor
    timestep: torch.Tensor

    @staticmethod
    def of(schedule: Schedule, n: int) -> Levels:
        """The levels of a schedule. Raises SpecError where a table has fewer timesteps."""
        times = [i / n for i in range(n + 1)]
        if isinstance(schedule, TableSchedule):
            size = len(schedule.alpha_bars)
            if size < n:
                raise SpecError(f"The model was trained on {size} timesteps: expected at most as many steps, got {n}.")
            times = [round(i * size / n) / size for i in range(n + 1)]
        columns = ([f(t) for t in times] for f in (schedule.alpha, schedule.sigma, schedule.timestep))
        return Levels(*(torch.tensor(column, dtype=torch.float32) for column in columns))

    def to(self, device: torch.device) -> Levels:
        """The same on a device."""
        return Levels(self.alpha.to(device), self.sigma.to(device), self.timestep.to(device))

    def __len__(self) -> int:
        return len(self.alpha)

    def scales(self, index: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma of each sample, shaped to multiply `like`."""
        shape = (-1, *(1,) * (like.ndim - 1))
        return self.alpha[index].view(shape), self.sigma[index].view(shape)

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """alpha x0 + sigma noise."""
        alpha, sigma = self.scales(index, clean)
        return alpha * clean + sigma * noise

    def snr(self, index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """alpha^2 / sigma^2 of each sample."""
        alpha, sigma = self.scales(index, like)
        return alpha**2 / sigma**2

    def _weights(self, x: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of x and of the clean estimate in a step of DDIM (arXiv:2010.02502); of Euler, along a flow."""
        (alpha, sigma), (alpha_end, sigma_end) = self.scales(start, x), self.scales(end, x)
        keep = sigma_end / sigma
        return keep, alpha_end - keep * alpha

    def step(self, x: torch.Tensor, x0: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """x moved from level `start` to level `end` along a constant clean estimate; exactly x where they are equal."""
        keep, add = self._weights(x, start, end)
        return torch.where((start == end).view(keep.shape), x, keep * x + add * x0)

    def landing(self, x: torch.Tensor, at_end: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """The clean estimate whose step from `start` lands on `at_end`; inverts `step`, `start` above `end`."""
        keep, add = self._weights(x, start, end)
        return (at_end - keep * x) / add


def shift_shares(schedule: Schedule, ratio: float, share: torch.Tensor) -> torch.Tensor:
    """Places on the way of a schedule, moved to where the signal-to-noise ratio is `ratio` times smaller.

    Along a straight path s t / (1 + (s - 1) t), s = sqrt(ratio) (arXiv:2403.03206, section 5.3.2). Of other schedules
    log SNR - log ratio (arXiv:2301.11093), except near the ends of their tables, which stay: every level is trained.

    Args:
        schedule: Of the model.
        ratio: Area of the pictures over that of the model's own, above 0.
        share: In [0, 1), of the way from picture to noise.
    """
    times = np.linspace(0, 1, SHIFT_POINTS)
    alpha, sigma = (np.array([f(float(t)) for t in times]) for f in (schedule.alpha, schedule.sigma))
    flow = sigma / (alpha + sigma)  # the time of a straight path of the same signal-to-noise ratio
    flow = (flow - flow[0]) / (flow[-1] - flow[0])
    moved = np.interp(shift_time(np.interp(share.double().cpu().numpy(), times, flow), ratio), flow, times)
    return torch.from_numpy(moved).to(share).clamp_max(LAST_SHARE)


def to_clean(
    prediction: str, output: torch.Tensor, x: torch.Tensor, scales: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """The clean estimate that an output means, as `skipstone.numerics.parametrize` has it, at many levels."""
    alpha, sigma = scales
    if prediction == "x0":
        return output
    if prediction == "eps":
        return (x - sigma * output) / alpha.clamp_min(1e-6)
    if prediction == "v":
        return (alpha * x - sigma * output) / (alpha**2 + sigma**2)
    return (x - sigma * output) / (alpha + sigma)  # flow
