"""A pipeline class of your own: python examples/own_pipeline.py

What makes it adaptable: it is a DiffusionPipeline, and its loop calls a network and then `scheduler.step`. Its network
has random weights here, so its pictures show noise; the calls that are left out are real.
"""

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel

import skipstone
from skipstone.integrations.diffusers.pipeline_specs import PipelineSpec, register_pipeline


class MyPipeline(DiffusionPipeline):
    """Pictures without a prompt."""

    def __init__(self, network: UNet2DModel, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(network=network, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, batch: int = 1, num_inference_steps: int = 50) -> list:
        side = self.network.config.sample_size
        x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            noise = self.network(x, t).sample
            x = self.scheduler.step(noise, t, x).prev_sample
        return self.numpy_to_pil((x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())


# What its network is called, and the names of its guidance branches in the order in which they enter it.
register_pipeline(PipelineSpec(("MyPipeline",), "My model", denoisers=("network",), branches=("cond",)))

if __name__ == "__main__":
    torch.manual_seed(0)
    network = UNet2DModel(
        16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    )
    pipe = MyPipeline(network, DDIMScheduler())
    with skipstone.adapt(pipe, "error_control") as adapted:
        images = pipe(batch=2)
    for k, image in enumerate(images):
        image.save(f"own-{k}.png")
    print(adapted.last.summary())
