"""One denoiser of two sizes against one of each: `python -m research.sizes.measure_sizes -h`.

Draws withheld prompts of Pebble at each size with its recipe's sampler (DDIM, 50 steps, guidance 3), by Pebble itself
and by models that the recipe trained further, on the same seeds. The judge reads 64 pixels: pictures of other sizes are
resized for it, bilinear. What is in `rows.json` is not drawn again.

    python -m research.sizes.measure_sizes --model 48=A/model --model 64=B/model --model both=C/model

Names other than `both` are the side that a model was trained for alone. Writes `rows.json`, `table.md` and `sheet.png`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from skipstone.cli.files import write_atomically
from skipstone.evaluation.prompts import load_prompts
from skipstone_pebble.judge import Judge, check_facts
from skipstone_pebble.model import Pebble
from skipstone_pebble.recipe import sampling
from skipstone_pebble.recipe.evaluate import draw

SIDES = (48, 64)  # pixels
BOTH, BASE = "both", "pebble"
STEPS, GUIDANCE = 50, 3.0
BAR = 2.0  # points of the judge that a model of both sizes may be below one of its size alone
MARKS = ("score", "objects", "background")
SHOWN = 12  # prompts on the sheet
ROWS, SHEETS = "rows.json", "pictures.npz"

Marks: TypeAlias = dict[str, list[float]]  # of each picture


def resize(pictures: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Pictures (N, H, W, 3) uint8 at another side, bilinear."""
    if pictures.shape[1] == side:
        return pictures
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    made = torch.nn.functional.interpolate(tensor, (side, side), mode="bilinear")
    return made.round().byte().permute(0, 2, 3, 1).numpy()


def read_marks(judge: Judge, pictures: NDArray[np.uint8], prompts: Sequence[str]) -> Marks:
    """What the judge says of each picture: share of all facts, of the objects, and of the background."""
    facts = [check_facts(r, p) for r, p in zip(judge.read(resize(pictures, 64)), prompts, strict=True)]
    names = ("object", "first", "second")
    return {
        "score": [float(np.mean(list(one.values()))) for one in facts],
        "objects": [float(np.mean([one[name] for name in names if name in one])) for one in facts],
        "background": [float(one["background"]) for one in facts],
    }


def sides_of(name: str) -> Sequence[int]:
    """The sizes that a model is drawn at: its own, and all of them of Pebble and of the model of both."""
    return SIDES if name in (BOTH, BASE) else (int(name),)


def measure(models: Mapping[str, str], limit: int, out: Path) -> dict[str, dict[str, Marks]]:
    """Draw and judge what is not in `rows.json` yet: model -> side -> marks."""
    file, drawn = out / ROWS, out / "cache"
    rows: dict[str, dict[str, Marks]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    prompts = [prompt.text for prompt in load_prompts("pebble", limit=limit)]
    judge = Judge.load()
    drawn.mkdir(parents=True, exist_ok=True)
    (drawn / ".gitignore").write_text("*\n", encoding="utf-8")
    for name, folder in models.items():
        for side in sides_of(name):
            if str(side) in rows.get(name, {}):
                continue
            began = time.monotonic()
            pictures = draw(Pebble.load(folder), prompts, range(limit), STEPS, GUIDANCE, side)
            np.savez_compressed(drawn / f"{name}-{side}.npz", pictures=pictures[:SHOWN])
            rows.setdefault(name, {})[str(side)] = read_marks(judge, pictures, prompts)
            write_atomically({file: (json.dumps(rows) + "\n").encode()})
            print(f"{name} at {side}: {time.monotonic() - began:.0f} s", flush=True)
    return rows


def points(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, in points of 100."""
    return 100 * float(np.mean(values)), 100 * float(np.std(values, ddof=1)) / len(values) ** 0.5


def write_table(rows: Mapping[str, Mapping[str, Marks]], command: str, out: Path) -> None:
    """`table.md`: the marks, and the paired differences of the model of both sizes from those of one."""
    count = len(next(iter(next(iter(rows.values())).values()))["score"])
    lines = [f"{count} withheld prompts, one seed each; points of the judge and their standard errors. `{command}`", ""]
    lines += ["| trained for | drawn at | judge | objects | background |", "|---|--:|--:|--:|--:|"]
    for name, sides in rows.items():
        label = {BASE: "64, not further (Pebble)", BOTH: "48 and 64"}.get(name, f"{name} alone")
        for side, marks in sides.items():
            cells = (f"{mean:.1f} ± {error:.1f}" for mean, error in (points(marks[mark]) for mark in MARKS))
            lines.append(f"| {label} | {side} | {' | '.join(cells)} |")
    lines += ["", "Both sizes less one size alone, pictures in pairs of the same prompt and seed:", ""]
    lines += ["| drawn at | judge | objects | background | within 2 points |", "|--:|--:|--:|--:|---|"]
    for side in map(str, SIDES):
        if side not in rows or BOTH not in rows or side not in rows[BOTH]:
            continue
        found = []
        for mark in MARKS:
            pairs = zip(rows[BOTH][side][mark], rows[side][side][mark], strict=True)
            found.append(points([one - other for one, other in pairs]))
        cells = (f"{mean:+.1f} ± {error:.1f}" for mean, error in found)
        lines.append(f"| {side} | {' | '.join(cells)} | {verdict(*found[0])} |")
    write_atomically({out / "table.md": ("\n".join(lines) + "\n").encode()})


def verdict(mean: float, error: float) -> str:
    """Whether a difference is above -2 points, and whether its standard error leaves a doubt of 5 %."""
    if mean < -BAR:
        return "no"
    return "yes" if mean - 1.645 * error >= -BAR else "yes, but for its standard error"


def write_sheet(names: Sequence[str], out: Path) -> None:
    """`sheet.png`: a row for each model and size, in the order of the table."""
    parts = []
    for name in names:
        for side in sides_of(name):
            with np.load(out / "cache" / f"{name}-{side}.npz") as stored:
                parts.append(resize(stored["pictures"], 64))
    sampling.save_sheet(np.concatenate(parts), out / "sheet.png", columns=SHOWN, zoom=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.sizes.measure_sizes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help="48, 64 or both")
    parser.add_argument("--limit", type=int, default=128, help="prompts")
    parser.add_argument("--out", type=Path, default=Path("research/sizes"))
    given = parser.parse_args(arguments)
    named: dict[str, Any] = dict(one.split("=", 1) for one in given.model)
    models = {BASE: BASE, **named}
    rows = measure(models, given.limit, given.out)
    command = "python -m research.sizes.measure_sizes " + " ".join(f"--model {name}=..." for name in named)
    write_table(rows, command.strip(), given.out)
    write_sheet(list(rows), given.out)


if __name__ == "__main__":
    main()
