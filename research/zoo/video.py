"""The video table: policies, fixed samplers and block caches on the zoo's clips, through a diffusers pipeline.

    python -m research.zoo.pipeline clips_flow --out runs/clips
    python -m research.zoo.video runs/clips                                   # rows that are missing
    python -m research.zoo.video runs/clips -p "my_policy" -p "fixed @ dpmpp / own / 12"  # these, again or new

Every row draws the same prompts and seeds. Writes `video.md` and, a record for each row, `video.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from research.zoo.motion import MotionJudge
from research.zoo.pipeline import call_settings, parse_prompt, prompts_of
from research.zoo.recipes import RECIPES
from skipstone.errors import GuestError, SkipstoneError
from skipstone.evaluation.checkpoints import Checkpoint
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.cost import count_macs
from skipstone.evaluation.markdown import format_table
from skipstone.evaluation.pipeline_subject import PipelineSubject
from skipstone.evaluation.references import converged_columns
from skipstone.evaluation.subject import SampleRequest
from skipstone.metrics import FVD, Flicker, FramePSNR, FrameSSIM, Sample, WorstFramePSNR
from skipstone.metrics.base import Metric

RECIPE = RECIPES["clips_flow"]
FULL, CLIPS = "fixed", 16
#: Clips whose multiply-accumulates are counted for a cache of blocks, and steps of the converged run.
COUNTED, CONVERGED = 2, 200
METRICS: tuple[Metric, ...] = (FramePSNR(), WorstFramePSNR(), FrameSSIM(), Flicker())
#: Title -> rows, as columns of `skipstone compare`.
ROWS = {
    "Fixed samplers": [
        FULL,
        *(f"fixed @ own / own / {n}" for n in (25, 20, 15, 10, 8)),
        *(f"fixed @ unipc / own / {n}" for n in (50, 20, 15, 10, 8)),
        *(f"fixed @ dpmpp / own / {n}" for n in (20, 15, 10, 8)),
    ],
    "AdaptiveDiffusion's rule": [
        "third_order_released",
        "third_order",
        "third_order(tol=0.05)",
        "third_order_released @ unipc / own",
        "third_order @ unipc / own",
    ],
    "Caches of blocks": [
        "first_block_cache(threshold=0.05)",
        "first_block_cache(threshold=0.1)",
        "first_block_cache(threshold=0.2)",
        "mag_cache(threshold=0.06)",
        "mag_cache(threshold=0.24, longest=5)",
        "taylorseer(interval=3)",
        "taylorseer(interval=5)",
        "dbcache(threshold=0.08, warmup=4)",
        "dbcache(threshold=0.2, warmup=4)",
        "pyramid_attention",
        "faster_cache",
        "deepcache",
    ],
    "Other rules": ["sada", "zeus", "interval(every=3)", "interval(every=3) @ unipc / own"],
    "`error_control`": [
        "error_control",
        "error_control @ unipc / own",
        "error_control(tol=0.05) @ unipc / own",
    ],
    "`stride`": ["safe", "balanced", "fast", "stride(tol=0.03)"],
}


@dataclass(frozen=True)
class Video:
    """The pipeline of a folder with its clips.

    Args:
        folder: That `research.zoo.pipeline` has written.
        clips: How many.
    """

    folder: Path
    clips: int = CLIPS

    @cached_property
    def subject(self) -> PipelineSubject:
        """For the library's tools, with the motion judge."""
        facts = {"shape": RECIPE.shape, "labels": RECIPE.domain.words}
        judge = MotionJudge.load()
        return PipelineSubject(
            Checkpoint.find(str(self.folder)),
            guidance_override=RECIPE.guidance,
            arguments=call_settings(facts),
            judge_factory=lambda: judge.score,
        )

    @property
    def items(self) -> list[SampleRequest]:
        """Prompts, each object in turn, under seeds of their own."""
        prompts = prompts_of(RECIPE.domain.words)
        return [SampleRequest(prompts[k % len(prompts)], k) for k in range(self.clips)]

    def column(self, spec: str) -> Column:
        """A row's column; what it leaves out is the pipeline's own, with 50 steps."""
        own = self.subject.default_sampler
        return self.subject.resolve_column(parse_column(spec, own.solver, own.grid, own.steps, run_files=True))

    def draw(self, column: Column) -> tuple[list[Any], list[float], float]:
        """Clips, calls of each, and seconds of one core for each."""
        self.subject.prepare(self.items, column)
        began = time.process_time()
        drawn, _ = self.subject.draw(self.items, column)
        seconds = (time.process_time() - began) / self.clips
        return self.subject.pictures(drawn), [one.calls for one in drawn], seconds

    def macs(self, column: Column) -> float:
        """Multiply-accumulates of the network for a few clips."""
        with count_macs(self.subject.denoisers) as meter:
            self.subject.draw(self.items[:COUNTED], column)
        return meter.macs

    def work(self, column: Column, calls: Sequence[float]) -> float:
        """Multiply-accumulates as a share of the full run's; of all but caches of blocks the share of calls."""
        if column.peer is None:
            return statistics.fmean(calls) / self.column(FULL).steps
        return self.macs(column) / self.full_macs

    @cached_property
    def full_macs(self) -> float:
        """Those of the full run."""
        return self.macs(self.column(FULL))

    @cached_property
    def references(self) -> dict[str, Any]:
        """Clips of the full run and of the converged runs, kept in the folder."""
        file = self.folder / f"references-{self.clips}.npz"
        if not file.is_file():
            exact, confirming = converged_columns(self.subject, CONVERGED)
            drawn = {
                name: np.stack(self.draw(column)[0])
                for name, column in (("full", self.column(FULL)), ("converged", exact), ("confirming", confirming))
            }
            np.savez(file, specs=[exact.spec, confirming.spec], **drawn)
        with np.load(file) as found:
            return dict(found)

    def record(self, spec: str) -> dict[str, Any]:
        """A row: its figures, or why there are none."""
        try:
            column = self.column(spec)
            clips, calls, seconds = self.draw(column)
        except GuestError as e:
            return {"spec": spec, "refused": str(e)}
        judge = MotionJudge.load()
        seen = [judge.see(clip) for clip in clips]
        wanted = [parse_prompt(item.prompt, RECIPE.domain.words) for item in self.items]
        right = np.array(seen) == np.array(wanted)
        record: dict[str, Any] = {
            "spec": spec,
            "calls": calls,
            "work": self.work(column, calls),
            "seconds": seconds,
            "object": right[:, 0].tolist(),
            "direction": right[:, 1].tolist(),
        }
        for name in ("full", "converged"):
            pairs = [Sample(clip, reference=true) for clip, true in zip(clips, self.references[name], strict=True)]
            record[name] = {m.name: [min(m.measure(pair), 99.0) for pair in pairs] for m in METRICS}
        if not FVD().missing():
            record["fvd"] = FVD().measure(clips, [item.prompt for item in self.items], list(self.references["full"]))
        return record

    def agreement(self) -> list[float]:
        """PSNR between the two converged runs."""
        pairs = zip(self.references["confirming"], self.references["converged"], strict=True)
        return [min(99.0, FramePSNR().measure(Sample(a, reference=b))) for a, b in pairs]


def middle(values: Sequence[float], digits: int = 1) -> str:
    """Median and worst, of values of which the lowest is the worst."""
    return f"{statistics.median(values):.{digits}f} / {min(values):.{digits}f}"


def cells(record: dict[str, Any]) -> list[str]:
    """A row of the table."""
    full, exact, count = record["full"], record["converged"], len(record["calls"])
    return [
        f"`{record['spec']}`",
        f"{statistics.fmean(record['calls']):.1f}",
        f"{record['work']:.0%}",
        f"{record['seconds']:.2f}",
        middle(exact["frame_psnr"]),
        middle(exact["frame_ssim"], 3),
        f"{statistics.median(exact['flicker']):.2f}",
        *(
            ["full run", "", "", ""]
            if record["spec"] == FULL
            else [
                middle(full["frame_psnr"]),
                f"{min(full['frame_psnr_worst']):.1f}",
                middle(full["frame_ssim"], 3),
                f"{statistics.median(full['flicker']):.2f}",
            ]
        ),
        f"{sum(record['object'])} + {sum(record['direction'])} of {count}",
        f"{record['fvd']:.0f}" if "fvd" in record else "",
    ]


HEAD = [
    "row", "calls", "work", "seconds", "PSNR, converged", "SSIM, converged", "flicker, converged",
    "PSNR, full run", "worst frame", "SSIM, full run", "flicker, full run", "object + direction", "FVD",
]  # fmt: skip


PREAMBLE = """\
# Video: the zoo's `clips_flow` in `WanPipeline`

{clips} clips, a prompt and a seed each, guidance {guidance:g}, float32, one core. Made by

    python -m research.zoo.pipeline clips_flow --out {folder}
    python -m research.zoo.video {folder}{more}

and a row of your own is added by `-p SPEC`.

- Rows are columns of `skipstone compare`; what one leaves out is the pipeline's own: Euler, 50 steps (`{full}`).
- calls: of the network, a guided one counted once, in the mean. A cache of blocks makes every call and leaves out
  parts of it: work is the multiply-accumulates of all calls, as a share of the full run's.
- seconds: of one core for a clip, the machine being shared; work is the figure to compare.
- PSNR (dB) and SSIM: the mean over frames, median / worst clip; worst frame: of all clips. Flicker: the mean change
  from frame to frame of the difference, in levels of 255, median clip.
- Converged: `{exact}`, with which `{confirming}` agrees to {agreed} dB.
- object + direction: clips in which the motion judge (`motion.py`) sees what the prompt asks for.
- FVD: {fvd}
"""


def lines(video: Video, records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The Markdown file."""
    exact, confirming = video.references["specs"]
    yield PREAMBLE.format(
        clips=video.clips,
        guidance=RECIPE.guidance,
        folder=video.folder,
        more="" if video.clips == CLIPS else f" --clips {video.clips}",
        full=FULL,
        exact=exact,
        confirming=confirming,
        agreed=middle(video.agreement()),
        fvd=FVD().missing() or "of these few clips, biased upwards.",
    )
    known = {spec for group in ROWS.values() for spec in group}
    groups = {**ROWS, "Added": [spec for spec in records if spec not in known]}
    for title, rows in groups.items():
        found = [records[spec] for spec in rows if spec in records]
        shown = [cells(record) for record in found if "calls" in record]
        if found:
            yield f"## {title}\n"
        if shown:
            yield "\n".join(format_table([HEAD, *shown], [":--", *["--:"] * (len(HEAD) - 1)])) + "\n"
        yield from (f"- `{record['spec']}`: {record['refused']}\n" for record in found if "refused" in record)


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Records by spec."""
    if not file.is_file():
        return {}
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {record["spec"]: record for record in found}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.zoo.video", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="of the pipeline")
    parser.add_argument("-p", dest="rows", action="append", help="measure this row alone, again or new; repeat it")
    parser.add_argument("--clips", type=int, default=CLIPS, help="a table of its own for each number")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "video.md")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    video, file, console = Video(given.folder, given.clips), given.out.with_suffix(".jsonl"), Console(width=160)
    records = read(file)
    wanted = given.rows or [spec for rows in ROWS.values() for spec in rows if spec not in records]
    for spec in wanted:
        with warnings.catch_warnings(action="ignore"):
            try:
                records[spec] = video.record(spec)
            except SkipstoneError as e:
                raise SystemExit(f"{spec}: {e}") from e
        record = records[spec]
        console.print(record.get("refused") or "  ".join(cells(record)), highlight=False, markup=False)
        file.write_text("".join(json.dumps(one) + "\n" for one in records.values()), encoding="utf-8")
        given.out.write_text("\n".join(lines(video, records)), encoding="utf-8")


if __name__ == "__main__":
    main()
