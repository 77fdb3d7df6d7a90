"""Parts that tiny pipelines share: tokenizers, encoders, prompts and generators."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tokenizers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from packaging.version import Version
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPTS = ("red fox", "two boats", "a clock", "blue hill", "old key", "wet dog", "pale moon", "tall hat")


def import_since(name: str, since: str) -> Any:
    """A class that diffusers has since a version; on an older one, the test that wants it is skipped and says so."""
    if Version(diffusers.__version__) < Version(since):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}, which came with {since}")
    return getattr(diffusers, name)


def prompts(batch: int) -> list[str]:
    """Prompts that differ from sample to sample."""
    return [PROMPTS[i % len(PROMPTS)] for i in range(batch)]


def negatives(batch: int) -> list[str]:
    """Negative prompts that differ from sample to sample."""
    return [PROMPTS[-1 - i % len(PROMPTS)] for i in range(batch)]


def generators(batch: int) -> list[torch.Generator]:
    """A fresh generator for each sample, seeded with its row."""
    return [torch.Generator("cpu").manual_seed(row) for row in range(batch)]


def pictures(batch: int, size: int) -> torch.Tensor:
    """Smooth pictures in [0, 1], one for each sample."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    shift = torch.arange(3.0)[:, None, None] + 2 * torch.arange(batch)[:, None, None, None]
    return (torch.sin(3 * x + shift) * torch.cos(4 * y - shift) + 1) / 2


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in which a row is the same whatever the number of rows."""
    rows = [
        torch.randn(shape[1:], generator=torch.Generator().manual_seed(100 * seed + row)) for row in range(shape[0])
    ]
    return torch.stack(rows)


def seeded(make: Any, *args: Any, seed: int = 0, gain: float = 1.0, **kwargs: Any) -> Any:
    """A module with seeded weights; layers that start at zero get weights too, or nothing would pass through them.

    A `gain` above one is for a network in which the text would else hardly be heard.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = make(*args, **kwargs)
        with torch.no_grad():
            for weights in module.parameters():
                if weights.ndim > 1:
                    weights.mul_(gain) if weights.any() else weights.normal_(std=0.5)
    return module.eval().requires_grad_(False)


def autoencoder(channels: int = 4, **more: Any) -> AutoencoderKL:
    """An autoencoder that halves the picture: 16 x 16 pictures, 8 x 8 latents."""
    options = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 4),
        "latent_channels": channels,
        "norm_num_groups": 2,
        "sample_size": 16,
        "mid_block_add_attention": False,
    }
    return seeded(AutoencoderKL, **options | more, seed=2)


def clip_tokenizer(length: int = 16) -> CLIPTokenizer:
    """One token per letter, and another for a letter that ends a word."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    with tempfile.TemporaryDirectory() as folder:  # transformers 4 takes files only
        vocab, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer(str(vocab), str(merges), model_max_length=length)


def clip_text(width: int = 8, length: int = 16, projection: int | None = None, seed: int = 0) -> nn.Module:
    """A CLIP text encoder of one layer, with a projection where `projection` gives its width."""
    config = CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection or width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return seeded(CLIPTextModelWithProjection if projection else CLIPTextModel, config, seed=seed)


def t5_tokenizer(length: int = 16) -> T5TokenizerFast:
    """One token per letter, in the manner of T5."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    vocab = [(piece, 0.0 if i < 3 else -1.0 - i / 100) for i, piece in enumerate(pieces)]
    words = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=2))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    words.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=words, extra_ids=0, model_max_length=length)


def t5_text(width: int = 8, seed: int = 1) -> T5EncoderModel:
    """A T5 encoder of one layer."""
    config = T5Config(vocab_size=4 + len(LETTERS), d_model=width, d_kv=4, d_ff=2 * width, num_layers=1, num_heads=2)
    return seeded(T5EncoderModel, config, seed=seed)


def call(pipe: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
    """The arguments that nearly every text pipeline takes."""
    del pipe
    return {
        "prompt": prompts(batch),
        "negative_prompt": negatives(batch),
        "guidance_scale": 4.0,
        "num_inference_steps": steps,
        "generator": generators(batch),
        "output_type": "latent",
    }
