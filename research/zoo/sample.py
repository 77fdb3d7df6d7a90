"""Draw samples of a training: `python -m research.zoo.sample NAME`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from research.zoo.export import load_run
from research.zoo.recipes import RECIPES
from research.zoo.sampling import draw_sheet


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.zoo.sample", description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"), help="folder of the trainings")
    parser.add_argument("--guidance", type=float, help="the recipe's, if not given")
    parser.add_argument("--out", type=Path, default=Path("samples.png"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = RECIPES[given.name]
    network = load_run(recipe, given.runs)
    draw_sheet(network, recipe, recipe.guidance if given.guidance is None else given.guidance).save(given.out)


if __name__ == "__main__":
    main()
