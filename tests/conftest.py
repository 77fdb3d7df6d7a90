"""Fixtures shared by the tests: a tiny text-to-image pipeline with random weights, of Pebble's kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# The same few examples in every run. `make test-random` draws others, `make fuzz` many: a failure of theirs prints the
# example, to be kept above the test as `@example(...)`.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("random", deadline=None, print_blob=True)
settings.register_profile("fuzz", deadline=None, print_blob=True, max_examples=2000)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the format of a diffusers pipeline: 64 x 64 pictures, 8 x 8 latents of 8 channels."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=48)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=32,
            projection_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=48,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=0,
    )
    StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of Pebble-DiT's kind, three blocks of two heads, as a folder; it has the judge that ships."""
    import torch

    from skipstone_pebble import text
    from skipstone_pebble.dit import DiT, DiTSettings
    from skipstone_pebble.family import Network
    from skipstone_pebble.model import Pebble
    from skipstone_pebble.recipe import autoencoder, export
    from skipstone_pebble.recipe.autoencoder import AutoencoderSettings

    folder = tmp_path_factory.mktemp("dit")
    torch.manual_seed(0)
    family, settings = DiT(), DiTSettings(blocks=3, heads=2, head_width=8, width=16, layers=1)
    network: Network = family.build(settings, text.build_tokenizer(folder / "tokenizer"))
    for weight in network.denoiser.parameters():  # those of a new network do nothing
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.2)
    coder = autoencoder.build(AutoencoderSettings(width=8, blocks=(1, 0, 0, 0)))
    export.save_pipeline(folder / "plain", coder, family, network)
    model = Pebble.load(folder / "plain")
    object.__setattr__(model, "has_judge", True)
    return model.save(folder / "tiny-dit")
