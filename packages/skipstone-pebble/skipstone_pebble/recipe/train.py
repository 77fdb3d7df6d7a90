"""Make Pebble from nothing: `python -m skipstone_pebble.recipe.train PICTURES_FOLDER --out DIR [--family dit]`.

The parts, each in its own folder of DIR with checkpoint (`last.pt`), log (`log.jsonl`) and curve
(`curve.png`), run in order and are taken up where they stopped when the command is given again:

1. `autoencoder`: the encoder in closed form, then the decoder on its slightly noisy latents.
2. `denoiser`: U-Net or transformer, and text encoder, on latents and captions.
3. `model`: the diffusers folder, float16 safetensors with a manifest of checksums.

`--base pebble` takes autoencoder and tokenizer from Pebble, or from another model's folder, instead of part 1,
and starts the text encoders from its own. `--further` starts the denoiser from its own, too.

`--sizes 48 64` trains one denoiser on pictures of both sides, in pixels.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from rich.console import Console

from skipstone.errors import ModelError, SpecError

from .. import text
from ..families import FAMILIES, load_family
from ..family import DenoiserFamily, DenoiserSettings, Network
from ..model import find_model
from ..scenes import SIDE, Sprites
from ..unet import UNetSettings
from . import autoencoder, data, denoiser, export, sampling, sprites
from .autoencoder import AutoencoderSettings, DecoderTrainer
from .denoiser import DenoiserTrainer
from .trainer import TrainingArguments, plot_curve


@dataclass(frozen=True)
class Recipe:
    """The options of the command. Raises SpecError for `further` without `base`.

    Args:
        pictures: folder of the artwork, see `sprites.load`.
        out: folder of the results.
        seed: of everything.
        decoder_steps, denoiser_steps: length of each part.
        decay: fraction of each part over which its learning rate falls.
        threads: of torch.
        sheet_steps: denoiser steps between sheets of sample pictures.
        stop: end every part after that many steps (as an interruption would).
        base: "pebble" or a folder, whose autoencoder, tokenizer and text encoder are the start; None for new ones.
        further: start the denoiser from the base's own, and train all weights further.
        autoencoder, denoiser: shape and training settings; those of the denoiser name its family.
    """

    pictures: Path
    out: Path
    seed: int = 0
    denoiser_steps: int = 12_000
    decoder_steps: int = 2500
    decay: float = 0.25
    threads: int = 2
    sheet_steps: int = 1000
    stop: int | None = None
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    denoiser: DenoiserSettings = field(default_factory=UNetSettings)
    base: str | None = None
    further: bool = False

    def __post_init__(self) -> None:
        if self.further and self.base is None:
            raise SpecError("--further trains the denoiser of --base further: name one, such as --base pebble.")

    @property
    def family(self) -> DenoiserFamily:
        """The family that the denoiser's settings are of."""
        return next(family for family in map(load_family, FAMILIES) if type(self.denoiser) is family.settings)

    def run(self, part: str, steps: int) -> TrainingArguments:
        """The settings of one part's training loop."""
        decay = int(steps * self.decay)
        return TrainingArguments(self.out / part, self.seed, steps, decay, min(100, steps // 10 + 1), stop=self.stop)


def train_autoencoder(recipe: Recipe, art: Sprites, console: Console) -> AutoencoderTiny:
    """Part 1: fit the encoder, train the decoder (further, if `decoder_steps` has grown)."""
    torch.manual_seed(recipe.seed)
    settings = recipe.autoencoder
    model = autoencoder.build(settings)
    autoencoder.fit_encoder(model, data.picture_batch(recipe.seed + 1, 0, 1024, art), settings)
    run = recipe.run("autoencoder", recipe.decoder_steps)
    trainer = DecoderTrainer(model, settings, art, run)
    trainer.train(console)
    trainer.use_average()
    plot_curve(run.folder)
    return model.eval()


def copy_base(recipe: Recipe) -> tuple[AutoencoderTiny, Path | None]:
    """Instead of part 1: copy autoencoder and tokenizer of the base; returns the autoencoder and the base's folder."""
    assert recipe.base is not None
    base, own = find_model(recipe.base), recipe.out / "autoencoder"
    for name, target in {"vae": own, "tokenizer": recipe.out / "tokenizer"}.items():
        if not target.exists():
            shutil.copytree(base / name, target)
    return AutoencoderTiny.from_pretrained(own).float().eval(), base


def _draw_sheet(recipe: Recipe, model: AutoencoderTiny, trainer: DenoiserTrainer) -> None:
    """Draw the sheet's prompts with the averaged weights."""
    if trainer.step % recipe.sheet_steps and trainer.step != trainer.run.steps:
        return
    prompts, network = sampling.SHEET_PROMPTS, trainer.network
    with trainer.averaged(), torch.inference_mode():
        for module in network.modules.values():
            module.eval()
        drawn = {}
        for side in recipe.denoiser.sizes:
            noise = sampling.initial_noise(range(len(prompts)), side)
            drawn[side] = sampling.sample_latents(trainer.family, network, prompts, noise, 25, 3.5)
        for module in network.modules.values():
            module.train()
    for side, latents in drawn.items():
        pictures, name = sampling.decode(model, latents), "" if side == SIDE else f"_{side}"
        sampling.save_sheet(pictures, trainer.run.folder / f"sheet_{trainer.step:06d}{name}.png")


def _take_weights(network: Network, source: Network) -> None:
    """Start from the weights of another network of the same shape. Raises ModelError for another shape."""
    for name, module in network.modules.items():
        try:
            module.load_state_dict(source.modules[name].state_dict())
        except RuntimeError:
            raise ModelError(f"--further: the {name} of --base has another shape; train without --further.") from None


def train_denoiser(
    recipe: Recipe, art: Sprites, model: AutoencoderTiny, base: Path | None, console: Console
) -> DenoiserTrainer:
    """Part 2."""
    tokenizer = text.build_tokenizer(recipe.out / "tokenizer")
    settings, family = recipe.denoiser, recipe.family
    torch.manual_seed(recipe.seed + 1)
    network = family.build(settings, tokenizer, base)
    if recipe.further and base is not None:
        _take_weights(network, family.load(base))
    cache = denoiser.build_cache(model, art, recipe.seed, settings.pairs, recipe.out, settings.sizes)
    run = recipe.run("denoiser", recipe.denoiser_steps)
    trainer = DenoiserTrainer(
        family, network, cache, settings, run, lambda trainer: _draw_sheet(recipe, model, trainer)
    )
    trainer.train(console)
    plot_curve(run.folder)
    return trainer


def train_pebble(recipe: Recipe, console: Console | None = None) -> Path:
    """Run the whole recipe; returns the folder of the finished model."""
    console = console or Console()
    torch.set_num_threads(recipe.threads)
    recipe.out.mkdir(parents=True, exist_ok=True)
    art = sprites.load_sprites(recipe.pictures)
    model, base = copy_base(recipe) if recipe.base else (train_autoencoder(recipe, art, console), None)
    trainer = train_denoiser(recipe, art, model, base, console)
    with trainer.averaged():
        return export.save_pipeline(recipe.out / "model", model, trainer.family, trainer.network)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    parser = argparse.ArgumentParser(prog="python -m skipstone_pebble.recipe.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("pictures", type=Path, help="folder with fluent3d_64.npz or with the emoji as PNGs")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.denoiser_steps, help="steps of the denoiser")
    parser.add_argument("--decoder-steps", type=int, default=Recipe.decoder_steps)
    parser.add_argument("--decay", type=float, default=Recipe.decay, help="last fraction: falling rate")
    parser.add_argument("--family", choices=FAMILIES, default="unet", help="of the denoiser")
    parser.add_argument("--base", help="pebble or a folder: take autoencoder, tokenizer and text encoder from it")
    parser.add_argument("--further", action="store_true", help="start the denoiser from that of --base")
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="SIDE", help="of the pictures in pixels, multiples of 16 in 16..64"
    )
    parser.add_argument("--rate", type=float, help="of the denoiser")
    parser.add_argument("--batch", type=int, help="of the denoiser")
    parser.add_argument("--first", type=float, help="fraction of captions that name the left or upper object first")
    parser.add_argument("--threads", type=int, default=Recipe.threads)
    parser.add_argument("--sheet-steps", type=int, default=Recipe.sheet_steps)
    given = parser.parse_args(arguments)
    overrides = {name: getattr(given, name) for name in ("rate", "batch", "first")}
    overrides["sizes"] = None if given.sizes is None else tuple(given.sizes)
    try:
        recipe = Recipe(
            pictures=given.pictures,
            out=given.out,
            seed=given.seed,
            denoiser_steps=given.steps,
            decoder_steps=given.decoder_steps,
            decay=given.decay,
            threads=given.threads,
            sheet_steps=given.sheet_steps,
            base=given.base,
            further=given.further,
            denoiser=load_family(given.family).settings(
                **{name: value for name, value in overrides.items() if value is not None}
            ),
        )
    except SpecError as e:
        parser.error(str(e))
    Console().print(f"Pebble is in {train_pebble(recipe)}")


if __name__ == "__main__":
    main()
