"""Write a finished network: `python -m research.zoo.export NAME` -> research/zoo/NAME.

The folder holds the averaged weights in float16 in diffusers' format (`config.json`,
`diffusion_pytorch_model.safetensors`), the vectors of the words (`words.safetensors`, networks that read text),
`scheduler/scheduler_config.json`, `zoo.json` (what else a loader must know), `samples.png` and `card.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch

from research.zoo.network import Denoiser, build, parameters_of
from research.zoo.recipes import RECIPES, Recipe
from research.zoo.sampling import draw_sheet


def load_run(recipe: Recipe, runs: Path) -> Denoiser:
    """The averaged weights of a training's checkpoint."""
    network = build(recipe.network, recipe.counts)
    state = torch.load(runs / recipe.name / "last.pt", weights_only=True)
    with torch.no_grad():
        for parameter, mean in zip(network.parameters(), state["average"], strict=True):
            parameter.copy_(mean)
    return network.eval().requires_grad_(False)


def load(folder: Path) -> Denoiser:
    """A finished network, float32, from its folder alone."""
    facts = json.loads((folder / "zoo.json").read_text(encoding="utf-8"))
    core = getattr(diffusers, facts["class"]).from_pretrained(folder, torch_dtype=torch.float32)
    network = Denoiser(core, tuple(facts["counts"]))
    if network.words is not None:
        network.words.load_state_dict(safetensors.torch.load_file(folder / "words.safetensors"))
    return network.float().eval().requires_grad_(False)


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """What a loader must know besides diffusers' own configuration."""
    return {
        "name": recipe.name,
        "class": recipe.network.kind,
        "shape": recipe.shape,
        "schedule": asdict(recipe.schedule),
        "patch": recipe.patch,
        "scale": recipe.scale,
        "centre": recipe.centre,
        "counts": recipe.counts,
        "labels": recipe.domain.words if recipe.labelled else [],
        "guidance": recipe.guidance,
        "distilled_guidances": recipe.guidances if recipe.teacher else None,
    }


def card(recipe: Recipe, network: Denoiser, log: dict[str, float]) -> str:
    """A few lines about a network."""
    schedule = recipe.schedule
    kind = f"{schedule.kind}, {schedule.prediction_type}" if schedule.tabled else schedule.kind
    extra = [", zero terminal SNR" * schedule.zero_snr, f", shift {schedule.shift:g}" * (schedule.kind == "flow")]
    taught = f", guidance distilled from {recipe.teacher}" if recipe.teacher else ""
    what = recipe.domain.artwork or "grey digits drawn from fonts"
    labels = "labels, a tenth of them dropped" if recipe.labelled else "unconditional"
    return "\n".join(
        [
            f"# {recipe.name}",
            "",
            f"- Kind: {kind}{''.join(extra)}{taught}; `{recipe.network.kind}`; {labels}.",
            f"- Samples: {list(recipe.shape)}, {what}, {recipe.domain.side} px.",
            f"- Parameters: {parameters_of(network) / 1e6:.2f} M, float16.",
            f"- Command: `python -m research.zoo.train {recipe.name} --minutes {recipe.minutes:g}`",
            f"- Trained {log['seconds'] / 60:.1f} minutes of one core, {log['step']:.0f} steps of {recipe.batch}; "
            f"final loss {log['loss']:.4f} (mean of about 100 steps).",
            f"- `samples.png`: 30 steps of DPM-Solver++ 2M, guidance {recipe.guidance:g}.",
            "",
        ]
    )


def export(recipe: Recipe, runs: Path, out: Path) -> Path:
    """Write a finished network's folder and check that it loads."""
    network, folder = load_run(recipe, runs), out / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    log = json.loads((runs / recipe.name / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    (folder / "card.md").write_text(card(recipe, network, log), encoding="utf-8")
    core: Any = network.core
    core.half().save_pretrained(folder)
    if network.words is not None:
        state = {key: value.half().contiguous() for key, value in network.words.state_dict().items()}
        safetensors.torch.save_file(state, folder / "words.safetensors")
    (folder / "scheduler").mkdir(exist_ok=True)
    for file, data in {
        "scheduler/scheduler_config": recipe.schedule.scheduler_config(),
        "zoo": facts_of(recipe),
    }.items():
        (folder / f"{file}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    draw_sheet(load(folder), recipe, recipe.guidance).save(folder / "samples.png")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.zoo.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"), help="folder of the trainings")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="receives a folder NAME")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(export(RECIPES[given.name], given.runs, given.out))


if __name__ == "__main__":
    main()
