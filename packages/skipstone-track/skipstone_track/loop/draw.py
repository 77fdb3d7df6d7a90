"""The step `draw`: the prompts of a round, divided, and a few full runs that show what the model draws now."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from skipstone.errors import SpecError
from skipstone.evaluation.files import write_file
from skipstone.evaluation.prompts import Prompt, describe_prompts, load_prompts, seeded_key

from .records import sum_of
from .round import Round, StepResult
from .settings import DrawSettings

PARTS = ("tune", "held_out", "calibrate")
CONTEXTS = {"tune": "tuning", "held_out": "evaluation", "calibrate": "calibration"}  # in MLflow


def prompts_of(settings: DrawSettings) -> list[Prompt]:
    """The prompts that the file names, each text once. Raises PromptError."""
    found = load_prompts(settings.prompts, limit=settings.limit or None, seed=settings.seed)
    return list({prompt.text.strip(): prompt for prompt in reversed(found)}.values())[::-1]


def divide(prompts: Sequence[Prompt], settings: DrawSettings) -> dict[str, list[Prompt]]:
    """Part -> prompts. Which part a prompt is in depends on its text, the seed and the other prompts' hashes alone.

    Raises:
        SpecError: too few prompts.
    """
    order = sorted(prompts, key=lambda prompt: seeded_key(settings.seed, "loop", prompt.text))
    first, second = settings.tune, settings.tune + settings.held_out
    if len(order) <= second:
        raise SpecError(
            f"draw: expected more than {second} prompts (tune {settings.tune}, held_out {settings.held_out}, and some "
            f"to calibrate on), got {len(order)} in {settings.prompts}. Give more prompts, or smaller parts."
        )
    return {"tune": order[:first], "held_out": order[first:second], "calibrate": order[second:]}


def inputs(at: Round) -> Mapping[str, str]:
    """What the step depends on: its settings, the prompts' texts, the weights."""
    settings = at.settings.draw
    found = describe_prompts(settings.prompts, prompts_of(settings))["sha256"]
    return {"settings": sum_of(asdict(settings)), "prompts": found, "weights": at.weights, **at.versions}


def draw(at: Round, folder: Path) -> StepResult:
    """Write the parts as files of prompts, and the pictures."""
    settings = at.settings.draw
    parts = divide(prompts_of(settings), settings)
    sums = {}
    for part, found in parts.items():
        lines = [{"id": p.id, "prompt": p.text, "category": p.category} for p in found]
        write_file(folder / f"{part}.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        sums[part] = describe_prompts(part, found)["sha256"]
    shown = parts["held_out"][: settings.pictures]
    calls = _draw_pictures(at, [prompt.text for prompt in shown], folder)
    counts = ", ".join(f"{len(parts[part])} {CONTEXTS[part]}" for part in PARTS if parts[part])
    lines_said = [f"{sum(map(len, parts.values()))} prompts of {Path(settings.prompts).name}: {counts}"]
    if shown:
        lines_said.append(f"{len(shown)} pictures in full, {calls:g} calls each")
    return StepResult(
        lines_said,
        {f"prompts.{part}": float(len(found)) for part, found in parts.items()},
        {"sha256": sums, "pictures": [prompt.text for prompt in shown]},
        prompts=[(settings.prompts, sums[part], CONTEXTS[part]) for part in PARTS if parts[part]],
    )


def _draw_pictures(at: Round, prompts: Sequence[str], folder: Path) -> float:
    """Draw a full run of each prompt, to PICTURE-i.png; calls of each."""
    from skipstone.cli.options import ModelOptions
    from skipstone.evaluation.columns import parse_column
    from skipstone.evaluation.pixels import encode_image
    from skipstone.evaluation.subject import SampleRequest, resolve_sampler

    subject = ModelOptions(str(at.model)).subject()
    column = parse_column("fixed", *resolve_sampler(subject, None, None, at.settings.calibrate.steps))
    subject.load([column])
    if not prompts:
        return 0.0
    found, _ = subject.draw([SampleRequest(text, k) for k, text in enumerate(prompts)], column)
    for k, pixels in enumerate(subject.pictures(found)):
        write_file(folder / f"picture-{k}.png", encode_image("PNG", pixels))
    return max(one.calls for one in found)
