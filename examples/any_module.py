"""A network of your own, without diffusers: python examples/any_module.py

The network predicts the noise in points of a circle, and is trained here in a few seconds.
"""

import math

import torch
from torch import nn

import skipstone
from skipstone.integrations.torch import CallCounter, ModuleBackbone

torch.manual_seed(0)
schedule = skipstone.parse("schedule", "linear_table")  # x = alpha(t) x0 + sigma(t) noise, t from 1 (noise) to 0 (data)


class Net(nn.Module):
    """The noise in points (batch, 2) at timesteps (batch,)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([x, timesteps[:, None] / 1000], dim=1))


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(500):
    angles, noise = 2 * math.pi * torch.rand(256), torch.randn(256, 2)
    times = torch.rand(256)
    alpha, sigma = (
        torch.tensor([scale(float(t)) for t in times])[:, None] for scale in (schedule.alpha, schedule.sigma)
    )
    noisy = alpha * torch.stack([angles.cos(), angles.sin()], dim=1) + sigma * noise
    timesteps = torch.tensor([schedule.timestep(float(t)) for t in times])
    loss = (net(noisy, timesteps) - noise).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

backbone = ModuleBackbone(net.eval(), schedule, prediction="eps")
grid = skipstone.parse("grid", "asinh").times(schedule, 50)
problems = [skipstone.Problem(schedule, torch.randn(2), grid, None, seed) for seed in range(8)]
for policy in ("fixed", "error_control"):
    with CallCounter(net) as counter:
        results = skipstone.denoise_many(backbone, problems, skipstone.solver("ddim"), skipstone.policy(policy))
    radius = sum(float(result.x.norm()) for result in results) / len(results)
    print(f"{policy}: {counter.rows / len(problems):.1f} calls a sample, mean radius {radius:.3f} (1 is the circle)")
