"""The zoo's video network as a diffusers pipeline: `python -m research.zoo.pipeline clips_flow --out runs/clips`.

Writes a folder that `--model` of the commands `compare`, `bench` and `calibrate` takes, and prints such commands. It
holds a `WanPipeline` of the network and its scheduler. The other parts are diffusers' and transformers' own classes
with weights that were not trained but set, so that nothing of the network is lost:

- the text encoder, a `UMT5EncoderModel` without layers, gives each word the vector that the network learnt;
- the tokenizer knows the network's words alone; "anything" and "anywhere" stand for a label that is not given, and are
  the negative prompt;
- the autoencoder, an `AutoencoderKLWan`, shows each latent pixel as 2 x 2 pixels, the first latent frame once and
  every other one twice: `WanPipeline` wants sides that are multiples of 16 and an odd number of frames.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from research.zoo.export import load

#: Words for a label that is not given, in the order of labels.
OPEN = ("anything", "anywhere")
#: Pixels a side for a latent pixel, and frames for every latent frame but the first.
SPATIAL, TEMPORAL = 2, 2
#: Channels inside the decoder: the first four carry the latents and a constant.
WIDTH, CARRIED = 8, 4
#: A constant beside the latents, so large that the last norm, which divides by the length of both, divides by it.
CONSTANT = 2.0**13
#: Large, so that UMT5's last norm divides by a constant, and a power of four, so that its root is exact.
EPSILON = 2.0**40


def parse_prompt(prompt: str, labels: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """For each label the value that a prompt names first, or how many there are where it names none.

    Args:
        prompt: "a ghost moving left"; words that are no values are passed over.
        labels: The values of each label.
    """

    def first(values: Sequence[str]) -> int:
        found = re.search(rf"\b({'|'.join(map(re.escape, values))})\b", prompt.lower())
        return len(values) if found is None else values.index(found[1])

    return tuple(map(first, labels))


def build_tokenizer(labels: Sequence[Sequence[str]]) -> PreTrainedTokenizerFast:
    """One token for each known word of a prompt, numbered as the network's vectors of words are."""
    words = [word for values, free in zip(labels, OPEN, strict=True) for word in (*values, free)]
    pad, unknown = "<pad>", "<unk>"
    vocabulary = {word: number for number, word in enumerate([*words, pad, unknown])}
    inner = Tokenizer(models.WordLevel(vocabulary, unknown))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(rf"\b({'|'.join(words)})\b"), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, unk_token=unknown, model_max_length=len(labels)
    )


def build_text_encoder(words: torch.Tensor) -> UMT5EncoderModel:
    """An encoder that gives token n row n of `words` (count, width), to the last bit."""
    count, width = words.shape
    config = UMT5Config(
        vocab_size=count + 2, d_model=width, d_kv=4, d_ff=4, num_layers=0, num_heads=1, layer_norm_epsilon=EPSILON
    )
    encoder = UMT5EncoderModel(config).eval().requires_grad_(False)
    encoder.shared.weight[:count] = words
    encoder.encoder.final_layer_norm.weight.fill_(EPSILON**0.5)
    return encoder


@torch.no_grad()
def build_autoencoder(centre: float, scale: float) -> AutoencoderKLWan:
    """An autoencoder that repeats latents of three channels, to rounding; its encoder gives zeros.

    All weights are zero but those that pass a channel on. A residual block whose weights are zero changes nothing.
    The last norm divides by a constant. SiLU is undone by silu(a) - silu(-a) = a.

    Args:
        centre, scale: latents are `scale * (video - centre)` of videos in [-1, 1].
    """
    coder = AutoencoderKLWan(
        base_dim=WIDTH,
        z_dim=3,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[centre] * 3,
        latents_std=[1 / scale] * 3,
        scale_factor_spatial=SPATIAL,
        scale_factor_temporal=TEMPORAL,
    ).eval()
    for parameter in coder.parameters():
        parameter.zero_().requires_grad_(False)
    decoder, (first, last) = coder.decoder, coder.decoder.up_blocks
    pass_on(coder.post_quant_conv, 3)
    pass_on(decoder.conv_in, 3)
    decoder.conv_in.bias[3] = CONSTANT
    for copy in range(TEMPORAL):
        pass_on(first.upsamplers[0].time_conv, CARRIED, to=copy * WIDTH)
    pass_on(first.upsamplers[0].resample[1], CARRIED)
    shortcut = last.resnets[0].conv_shortcut
    pass_on(shortcut, CARRIED)
    pass_on(shortcut, 3, to=CARRIED, factor=-1.0)
    for start, factor in ((0, 1.0), (CARRIED, -1.0)):
        decoder.norm_out.gamma[start : start + 3] = CONSTANT / WIDTH**0.5
        pass_on(decoder.conv_out, 3, start=start, factor=factor)
    return coder


def pass_on(layer: Any, channels: int, start: int = 0, to: int = 0, factor: float = 1.0) -> None:
    """Let a convolution put channels, times a factor, where others are; it looks at this frame and pixel alone."""
    *times, height, width = layer.kernel_size
    here = (*(length - 1 for length in times), height // 2, width // 2)  # the last in time: they are causal
    for channel in range(channels):
        layer.weight[(to + channel, start + channel, *here)] = factor


def build_pipeline(folder: Path) -> WanPipeline:
    """The pipeline of a finished network's folder."""
    facts = json.loads((folder / "zoo.json").read_text(encoding="utf-8"))
    if facts["class"] != "WanTransformer3DModel":
        raise ValueError(f"{folder} holds a {facts['class']}; expected a video network, e.g. clips_flow.")
    network = load(folder)
    assert network.words is not None
    return WanPipeline(
        tokenizer=build_tokenizer(facts["labels"]),
        text_encoder=build_text_encoder(network.words.weight.detach()),
        vae=build_autoencoder(facts["centre"], facts["scale"]),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler"),
        transformer=network.core,
    )


def call_settings(facts: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the pipeline's call that fit the network: `--set NAME=VALUE` of the commands.

    Args:
        facts: `zoo.json` of the network.
    """
    _, frames, height, width = facts["shape"]
    return {
        "height": SPATIAL * height,
        "width": SPATIAL * width,
        "num_frames": TEMPORAL * (frames - 1) + 1,
        "max_sequence_length": len(facts["labels"]),
        "negative_prompt": " ".join(OPEN),
    }


def prompts_of(labels: Sequence[Sequence[str]]) -> list[str]:
    """A prompt for every object and direction; neighbours differ in both."""
    objects, ways = labels
    turns = itertools.product(range(len(ways)), range(len(objects)))
    return [f"a {objects[thing]} moving {ways[(thing + turn) % len(ways)]}" for turn, thing in turns]


def commands(out: Path, facts: dict[str, Any]) -> str:
    """What to type next."""
    given = " ".join(f"--set {shlex.quote(f'{name}={value}')}" for name, value in call_settings(facts).items())
    model = f"--model {out} --guidance {facts['guidance']:g} {given}"
    prompts, target = out / "prompts.txt", '"frame_psnr >= 30 @ 90%"'
    return "\n\n".join(
        [
            f"skipstone compare {' '.join(repr(p) for p in prompts_of(facts['labels'])[:4])} {model} "
            f"-p third_order_released -p third_order -p error_control -p balanced -p fewer --out {out}/compare",
            f"skipstone bench --prompts {prompts} --limit 8 --tuned 4 --searched 0 --budget 10 --budget 15 {model} "
            f"--out {out}/bench",
            f"skipstone calibrate --prompts {prompts} --target {target} {model} --out {out}/calibrated",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.zoo.pipeline", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", help="a finished network's folder in research/zoo, or a path")
    parser.add_argument("--out", type=Path, required=True, help="receives the pipeline and prompts.txt")
    given = parser.parse_args(arguments)
    own = Path(__file__).parent / given.name
    folder = own if own.is_dir() else Path(given.name)
    facts = json.loads((folder / "zoo.json").read_text(encoding="utf-8"))
    build_pipeline(folder).save_pretrained(given.out)
    (given.out / "prompts.txt").write_text("\n".join(prompts_of(facts["labels"])) + "\n", encoding="utf-8")
    print(commands(given.out, facts))


if __name__ == "__main__":
    main()
