"""MLX beside torch on one machine: python benchmarks/mlx_speed.py > benchmarks/mlx_speed.md

Times Pebble and Pebble-DiT in every precision: one call of the denoiser with 1 and with 8 rows, and a whole run of 50
steps with guidance, prompt to picture. Each row of the table is a process of its own; they take turns, one at a time,
so that all meet the same load of the machine. On a Mac with Apple silicon torch is measured on MPS, too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

MODELS = ("pebble", "pebble-dit")
PROMPT, STEPS, GUIDANCE = "a red apple on a blue background", 50, 3.0
ROWS = (1, 8)
LONGEST = 120.0  # seconds of a run that is made
PRECISIONS = {
    "float32": ("float32", None),
    "float16": ("float16", None),
    "bfloat16": ("bfloat16", None),
    "float16, 8 bits": ("float16", 8),
}


@dataclass
class Row:
    """One way to run a model.

    Args:
        model: Its name.
        backend: "torch cpu", "torch mps" or "mlx".
        precision: One of PRECISIONS.
        process, pipe: Of the process that runs it.
        seconds: What is measured -> the turns.
    """

    model: str
    backend: str
    precision: str
    process: Any = None
    pipe: Connection | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: tuple[float, float | None] = (0.0, None)

    def ask(self, what: str) -> Any:
        """The answer of the process."""
        assert self.pipe is not None
        self.pipe.send(what)
        return self.pipe.recv()

    def has_time_for_a_run(self) -> bool:
        """Whether a run, of two rows a step, takes less than LONGEST seconds."""
        return STEPS * 2 / ROWS[-1] * self.seconds[str(ROWS[-1])][0] < LONGEST


# -- In the processes ------------------------------------------------------------------------------


def megabytes() -> float:
    """The most memory that this process has had; Linux counts it in units of 1024 bytes, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def work(pipe: Connection, model: str, backend: str, precision: str, threads: int) -> None:
    """Answer "1" and "8" with the seconds of a call, "run" with those of a run, and "memory"."""
    import torch

    torch.set_num_threads(threads)
    make = make_mlx if backend == "mlx" else make_torch
    call, run, counted = make(model, backend, precision)
    before = megabytes()
    actions: dict[str, Callable[[], Any]] = {str(rows): (lambda rows=rows: call(rows)) for rows in ROWS}
    actions["run"] = run
    while (what := pipe.recv()) != "end":
        if what == "memory":
            pipe.send((megabytes() - before, counted()))
            continue
        start = time.perf_counter()
        actions[what]()
        pipe.send(time.perf_counter() - start)


def make_torch(model: str, backend: str, precision: str) -> tuple[Callable[[int], None], Callable[[], None], Any]:
    """A call, a run and the bytes of the device, with diffusers' own pipeline."""
    import torch

    from skipstone_pebble import load_pipeline

    device, dtype = backend.split()[1], getattr(torch, precision)
    pipe = load_pipeline(model).to(device, dtype)
    pipe.set_progress_bar_config(disable=True)
    dit = model == "pebble-dit"
    net = pipe.transformer if dit else pipe.unet
    side, channels = net.config.sample_size, net.config.in_channels
    empty = {"max_sequence_length": 1} if dit else {}  # as many tokens as on MLX

    def draw(*shape: int) -> Any:
        return torch.randn(shape, dtype=dtype, device=device)

    @torch.inference_mode()
    def call(rows: int) -> None:
        x, times = draw(rows, channels, side, side), torch.full((rows,), 500.0, device=device)
        words = pipe.tokenizer.model_max_length + dit
        if dit:
            states = draw(rows, words, net.config.joint_attention_dim)
            made = net(x, states, draw(rows, net.config.pooled_projection_dim), times).sample
        else:
            made = net(x, times, draw(rows, words, net.config.cross_attention_dim)).sample
        made.float().sum().item()

    def run() -> None:
        pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **empty)

    def counted() -> float | None:
        return torch.mps.driver_allocated_memory() / 2**20 if device == "mps" else None

    return call, run, counted


def make_mlx(model: str, backend: str, precision: str) -> tuple[Callable[[int], None], Callable[[], None], Any]:
    """A call, a run and the most bytes that MLX has held, with the pipeline of `skipstone.mlx`."""
    import mlx.core as mx

    import skipstone.mlx

    dtype, bits = PRECISIONS[precision]
    pipe = skipstone.mlx.load(model, dtype, bits, GUIDANCE)
    known = {name: value[None] for name, value in pipe.problem(PROMPT, 0, 2).cond["cond"].items()}
    size = pipe.size

    def call(rows: int) -> None:
        x = mx.random.normal((rows, size.height, size.width, size.channels))
        condition = {name: mx.repeat(value, rows, axis=0) for name, value in known.items()}
        mx.eval(pipe.unet(x, mx.full((rows,), 500.0), condition))

    def run() -> None:
        pipe(PROMPT, "fixed", steps=STEPS)

    return call, run, lambda: mx.get_peak_memory() / 2**20


# -- The table -------------------------------------------------------------------------------------


def list_rows(models: list[str]) -> list[Row]:
    """Every way to run each model on this machine."""
    import torch

    rows = []
    for model in models:
        rows += [Row(model, "torch cpu", one) for one in ("float32", "bfloat16")]
        if torch.backends.mps.is_available():
            rows += [Row(model, "torch mps", one) for one in ("float32", "float16")]
        rows += [Row(model, "mlx", one) for one in PRECISIONS]
    return rows


def measure(rows: list[Row], turns: int, runs: int, threads: int) -> None:
    """Fill in the seconds and the memory of each row."""
    context = multiprocessing.get_context("spawn")
    for row in rows:
        row.pipe, other = context.Pipe()
        row.process = context.Process(target=work, args=(other, row.model, row.backend, row.precision, threads))
        row.process.start()
        if row.ask(str(ROWS[0])) < 2:  # what is read or compiled at the first call of each shape
            row.ask(str(ROWS[-1]))
    for turn in range(turns):
        for row in rows:
            for what in map(str, ROWS):
                row.seconds.setdefault(what, []).append(row.ask(what))
        for row in rows if turn < runs else []:
            if row.has_time_for_a_run():
                row.seconds.setdefault("run", []).append(row.ask("run"))
    for row in rows:
        row.memory = row.ask("memory")
        row.pipe.send("end")
        row.process.join()


def table(rows: list[Row], args: argparse.Namespace, load: float) -> str:
    """The page."""
    import mlx.core as mx

    from skipstone.evaluation.fingerprint import processor_name

    gpu = mx.metal.is_available()
    where = f"{processor_name()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    busy = max(load, os.getloadavg()[0]) > (os.cpu_count() or 1)
    lines = [
        "# MLX beside torch\n",
        *(["**Others ran on this machine at the same time: the seconds are too many, by different parts.**\n"] * busy),
        f"{where}; MLX on the {'GPU' if gpu else 'CPU'}, torch with {args.threads} thread(s); load average {load:.1f} "
        f"at the start and {os.getloadavg()[0]:.1f} at the end.  ",
        f"mlx {version('mlx')}, torch {version('torch')}, diffusers {version('diffusers')}, Python "
        f"{platform.python_version()}. Medians of {args.turns} turn(s) of calls and {args.runs} of runs. A run: "
        f"{STEPS} steps with guidance, one picture, prompt to pixels.\n",
        "| model | backend | precision | ms a call, 1 row | 8 rows | s a run | MB, process | MB, backend |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        times = [f"{1000 * statistics.median(row.seconds[str(n)]):.1f}" for n in ROWS]
        process, counted = row.memory
        run = f"over {LONGEST:.0f}" if args.runs else "-"
        if "run" in row.seconds:
            run = f"{statistics.median(row.seconds['run']):.2f}"
        cells = [*times, run, f"{process:.0f}", "-" if counted is None else f"{counted:.0f}"]
        lines.append(f"| {row.model} | {row.backend} | {row.precision} | {' | '.join(cells)} |")
    if not gpu:
        lines.append(
            "\nMLX on a CPU is not what it is made for: **nothing about Apple hardware follows from this table.** "
            "On a Mac with Apple silicon:"
        )
    else:
        lines.append("\nMade by:")
    lines.append(
        "\n    pip install '.[mlx]' packages/skipstone-pebble\n"
        "    python benchmarks/mlx_speed.py > benchmarks/mlx_speed.md\n\n"
        "MB, process: what it grew by after its model was loaded, at most. MB, backend: "
        "`mx.get_peak_memory()`, weights included; of torch on MPS `torch.mps.driver_allocated_memory()`."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--turns", type=int, default=7, help="measured calls of each kind")
    parser.add_argument("--runs", type=int, default=3, help="measured runs, at most as many as turns")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    given = parser.parse_args()
    found, busy = list_rows(given.models), os.getloadavg()[0]
    measure(found, given.turns, given.runs, given.threads)
    print(table(found, given, busy))
