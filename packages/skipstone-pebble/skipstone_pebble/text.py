"""Pebble's own words as tokens: a CLIP tokenizer of a few hundred words, and captions in other words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from skipstone.errors import ModelError

from .scenes import Scene, caption
from .words import BACKGROUNDS, FILLERS, OBJECTS, OPENINGS, RELATIONS, SIZES, SYNONYMS, known_words

#: Tokens of a prompt, start and end included; the longest caption needs 20.
MAX_LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"
Encoder = TypeVar("Encoder", CLIPTextModel, CLIPTextModelWithProjection)


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make every word one token: the commonest pair first, ties by the alphabet.

    Not the trainer of `tokenizers`, which breaks ties differently in every process.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(words)]
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for parts in spelled for pair in pairwise(parts))
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for parts in spelled:
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == best:
                    parts[at : at + 2] = ["".join(best)]
                at += 1


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write `vocab.json` and `merges.txt` in which every known word is one token; returns the tokenizer.

    Every other word is spelled by bytes, so nothing is ever lost. A tokenizer already in the folder is
    kept: embeddings trained with it mean nothing with another.
    """
    if (folder / "tokenizer.json").is_file():
        kept: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(known_words())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH, bos_token=START, eos_token=END
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def tokens(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> torch.Tensor:
    """Token ids (N, 24) of the prompts."""
    padded = tokenizer(list(prompts), padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    ids: torch.Tensor = padded.input_ids
    return ids


def build_encoder(
    kind: type[Encoder], tokenizer: CLIPTokenizer, width: int, layers: int, base: Path | None = None
) -> Encoder:
    """A text encoder for the tokenizer: new with torch's current random state, or that of the model in `base`."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = kind(config)
    if base is None:
        return encoder
    weights = CLIPTextModel.from_pretrained(base / "text_encoder").state_dict()
    known = encoder.state_dict()
    # Releases of transformers differ in whether the names begin with "text_model.".
    by_end = {name.removeprefix("text_model."): name for name in known}
    renamed = {by_end[name.removeprefix("text_model.")]: value for name, value in weights.items()}
    if strange := [name for name, value in renamed.items() if value.shape != known[name].shape]:
        raise ModelError(f"{base} has a text encoder of another shape ({strange[0]}); train without --base")
    encoder.load_state_dict(renamed, strict=False)  # a projection, if there is one, stays new
    return encoder


_OTHER_WORDS = {
    name: [name, *(other for other, own in SYNONYMS.items() if own == name)]
    for name in [*OBJECTS, *BACKGROUNDS, *RELATIONS, *SIZES]
}


def vary_caption(scene: Scene, rng: np.random.Generator, first: float = 0.5) -> str:
    """A caption as training words it: mostly the plain sentence, now and then something looser.

    Of two objects the left or upper one comes first with probability `first`; 5 % leave the background
    out; 20 % use synonyms, fillers or an opening.
    """
    if scene.relation is not None and (rng.random() < first) != (scene.relation in ("left of", "above")):
        scene = scene.mirror()
    if rng.random() < 0.05:
        scene = scene.without_background()
    if rng.random() >= 0.2:
        return caption(scene)

    def words(name: str) -> str:
        options = _OTHER_WORDS[name]
        return options[int(rng.integers(len(options)))]

    def thing(name: str) -> str:
        text = words(name)
        if scene.size != "normal":
            text = f"{words(scene.size)} {text}"
        if rng.random() < 0.3:
            text = f"{FILLERS[int(rng.integers(len(FILLERS)))]} {text}"
        return f"the {text}" if rng.random() < 0.15 else f"{'an' if text[0] in 'aeiou' else 'a'} {text}"

    text = thing(scene.objects[0])
    if scene.relation is not None:
        text += f" {words(scene.relation)} {thing(scene.objects[1])}"
    if scene.background is not None:
        noun = ("background", "background", "backdrop", "ground")[int(rng.integers(4))]
        text += f" on a {words(scene.background)} {noun}"
    if rng.random() < 0.3:
        text = f"{OPENINGS[int(rng.integers(len(OPENINGS)))]} {text}"
    return text
