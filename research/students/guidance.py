"""A student that takes the weight of guidance as an input, at several: `python -m research.students.guidance -h`.

At each weight the pictures of withheld prompts are held against the teacher's converged ones at that weight: two steps
of the student (two rows of the network), two steps of the teacher without guidance (as many rows), one guided step (as
many), two guided steps (twice as many), and a student with one weight in it.

    python -m research.students.guidance --student any --out research/students/pebble

Writes `guidance.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from research.students.row_figures import closeness, judge_facts
from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.subject import SampleRequest
from skipstone.integrations.torch import CallCounter
from skipstone.policies.student import Student, StudentCard
from skipstone.registry import spell

CONVERGED = "fixed @ unipc / trailing / 40"
HEAD = "| guidance | row | rows of the network | judge | PSNR, dB | SSIM |"


def draw(model: str, guidance: float, spec: str, items: Sequence[SampleRequest]) -> tuple[list[Any], float]:
    """Pictures at a weight, and the rows of the network that each took."""
    subject = EngineSubject(model, model, guidance)
    column = subject.resolve_column(parse_column(spec, *DEFAULT_SAMPLER))
    with CallCounter(subject.model_of(column.effective_policy).unet) as counter:
        generated, _ = subject.draw(items, column)
    return subject.pictures(generated), counter.rows / len(items)


def measure(model: str, weight: float, rows: dict[str, tuple[str, float]], items: Sequence[SampleRequest]) -> list[str]:
    """Lines of the table at one weight; `rows` are name -> (spec, guidance)."""
    converged, _ = draw(model, weight, CONVERGED, items)
    lines = []
    for name, (spec, guidance) in {"converged": (CONVERGED, weight), **rows}.items():
        pictures, cost = (converged, 80.0) if name == "converged" else draw(model, guidance, spec, items)
        facts, near = judge_facts(pictures, [item.prompt for item in items]), closeness(pictures, converged)
        near_said = f"{near['psnr']:.1f} / {near['psnr_p10']:.1f} | {near['ssim']:.3f} / {near['ssim_p10']:.3f}"
        judged = f"{100 * facts['judge']:.1f} ± {100 * facts['judge_se']:.1f}"
        lines.append(f"| {weight:g} | {name} | {cost:g} | {judged} | {' | ' if name == 'converged' else near_said} |")
        print(lines[-1], flush=True)
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.students.guidance", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="pebble")
    parser.add_argument("--student", required=True, help="folder of a student of a range of guidance")
    parser.add_argument("--fixed", default="pebble-consistency-2", help="a student with one weight in it")
    parser.add_argument("--weights", type=float, nargs="+", default=[1.5, 3.0, 5.0], help="of guidance")
    parser.add_argument("--limit", type=int, default=64, help="withheld prompts")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    items = [SampleRequest(p.text, i) for i, p in enumerate(load_prompts("pebble", limit=given.limit))]
    fixed, low_high = StudentCard.read(given.fixed), StudentCard.read(given.student).guidance_range
    steps = StudentCard.read(given.student).steps
    if not low_high:
        parser.error(f"{given.student} takes no guidance: expected a folder of skipstone distill --guidance-range.")
    lines = []
    for weight in given.weights:
        rows = {
            f"student, {steps} steps": (spell(Student(given.student, steps)), weight),
            f"student of {fixed.guidance:g} alone, {fixed.steps} steps": (spell(Student(given.fixed)), weight),
            f"ddim without guidance, {steps} steps": (f"fixed @ ddim / trailing / {steps}", 1.0),
            "ddim, 1 step": ("fixed @ ddim / trailing / 1", weight),
            f"ddim, {steps} steps": (f"fixed @ ddim / trailing / {steps}", weight),
        }
        lines += measure(given.model, weight, rows, items)
    said = (
        f"Made by `python -m research.students.guidance --model {given.model} --limit {given.limit} --student ...`, "
        f"of a student of guidance {low_high[0]:g} to {low_high[1]:g}; {len(items)} withheld prompts; medians and "
        f"worst tenths to the teacher's converged pictures at the same weight."
    )
    given.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join([said, "", HEAD, "|--:|---|--:|--:|--:|--:|", *lines]) + "\n"
    (given.out / "guidance.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
