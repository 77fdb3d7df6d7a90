"""A T5 without layers: `StableDiffusion3Pipeline.from_pretrained` wants one where none is passed as None."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models
from torch import nn
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from skipstone.errors import ModelError

#: Rows that the pipeline puts after those of CLIP, whatever the prompt: its `max_sequence_length`.
MAX_SEQUENCE_LENGTH = 256


def build_null_text_encoder(width: int) -> T5EncoderModel:
    """No layers, and a last norm of zeros: every row is zero, as the pipeline's own are where it has no T5."""
    config = T5Config(vocab_size=4, d_model=width, d_kv=4, d_ff=4, num_layers=0, num_heads=1)
    model = T5EncoderModel(config)
    nn.init.zeros_(model.encoder.final_layer_norm.weight)
    return model


def build_null_tokenizer() -> T5TokenizerFast:
    """Every letter is unknown."""
    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>", "\u2581")]
    return T5TokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(pieces, 2)), extra_ids=0, model_max_length=MAX_SEQUENCE_LENGTH
    )


def check_null_text_encoder(folder: Path) -> None:
    """Raise ModelError where the T5 of a folder has something to say, which Pebble's own loop would leave out."""
    layers = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_layers"]
    if layers:
        raise ModelError(f"its T5 has {layers} layers, and Pebble's format wants one without; use skipstone.adapt")
