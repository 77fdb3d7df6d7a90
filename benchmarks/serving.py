"""Pictures a second of the server: python benchmarks/serving.py > benchmarks/serving.md

Serves Pebble twice, by `skipstone serve` and by plain diffusers behind FastAPI with a lock, and asks each for pictures
from as many clients as `--clients`, over loopback. Rows take turns, so that all meet the same load of the machine.
`--threads` is of each server; the clients need a core of their own. Linux only: CPU seconds are read from /proc.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

FULL = "fixed @ unipc / trailing / 50"
SAMPLERS = ("unipc / trailing", "dpmpp / trailing", "dpmpp / karras")
STEPS = (8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 36, 40)
PROMPTS_FILE = "pebble"
TIERS = ((0.4, "fixed @ unipc / trailing / 10"), (0.4, "fixed @ unipc / trailing / 20"), (0.2, FULL))


@dataclass
class Row:
    """One way to serve.

    Args:
        name: Of the table.
        address: Of its server.
        process: Of its server.
        policy: Of its requests; "" for the plain server.
    """

    name: str
    address: str
    process: int
    policy: str = ""
    speeds: list[float] = field(default_factory=list)  # pictures a second, of each turn
    seconds: list[float] = field(default_factory=list)  # CPU seconds of the server, each turn
    calls: list[float] = field(default_factory=list)


# -- The plain server ------------------------------------------------------------------------------


def serve_plain(port: int, threads: int) -> None:
    """Diffusers behind FastAPI with a lock: what people do. The faster memory format, one request at a time."""
    import torch
    import uvicorn
    from diffusers import UniPCMultistepScheduler
    from fastapi import FastAPI

    from skipstone_pebble import load_pipeline

    torch.set_num_threads(threads)
    pipe = load_pipeline()
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    app, lock = FastAPI(), threading.Lock()

    @app.post("/v1/images/generations")
    def draw(body: dict[str, Any]) -> dict[str, Any]:
        with lock:
            generator = torch.Generator().manual_seed(body["seed"])
            image = pipe(body["prompt"], num_inference_steps=50, guidance_scale=3.0, generator=generator).images[0]
        out = io.BytesIO()
        image.save(out, format="PNG")
        return {"data": [{"b64_json": base64.b64encode(out.getvalue()).decode(), "calls": 50.0}]}

    print(f"at http://127.0.0.1:{port}", file=sys.stderr, flush=True)
    uvicorn.run(app, port=port, log_level="error")


# -- The load ---------------------------------------------------------------------------------------


@contextmanager
def started(*command: str) -> Iterator[tuple[str, int]]:
    """Address and process of a server, once it answers."""
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = next(m for line in process.stderr if (m := re.search(r"http://\S+", line)))
        while not _answers(found[0]):
            time.sleep(0.2)
        yield found[0], process.pid
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/openapi.json").status_code == 200
    except httpx.TransportError:
        return False


def cpu_seconds(process: int) -> float:
    """User and system seconds of a process so far."""
    words = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def ask(client: httpx.Client, row: Row, prompt: str, seed: int, policy: str = "") -> dict[str, Any]:
    """One picture: the facts of its answer."""
    body: dict[str, Any] = {"prompt": prompt, "seed": seed}
    if row.policy or policy:
        body["policy"] = policy or row.policy
    answer = client.post(f"{row.address}/v1/images/generations", json=body, timeout=600)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()["data"][0]
    return found


def take_turn(row: Row, prompts: Sequence[str], pictures: int, clients: int) -> None:
    """Ask for pictures from so many clients at once, each asking anew when it is answered."""
    before, began = cpu_seconds(row.process), time.perf_counter()
    with httpx.Client(limits=httpx.Limits(max_connections=clients)) as client, ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda k: ask(client, row, prompts[k % len(prompts)], k), range(pictures)))
    row.speeds.append(pictures / (time.perf_counter() - began))
    row.seconds.append(cpu_seconds(row.process) - before)
    row.calls += [one["calls"] for one in found]


# -- Equal quality ---------------------------------------------------------------------------------


def closeness(engine: Any, policy: str, wanted: Sequence[tuple[str, int]], full: Sequence[Any]) -> tuple[float, float]:
    """Median and lowest tenth of the PSNR to the full runs, in dB."""
    futures = [engine.submit(prompt, seed=seed, policy=policy) for prompt, seed in wanted]
    errors = [
        np.square(future.result().pixels.astype(float) - one.astype(float)).mean()
        for future, one in zip(futures, full, strict=True)
    ]
    psnr = [10 * np.log10(255**2 / max(error, 0.05)) for error in errors]  # 0.05: below it 8 bits show nothing
    return float(np.median(psnr)), float(np.quantile(psnr, 0.1))


def find_equal(prompts: Sequence[str], policy: str) -> tuple[str, Mapping[str, tuple[float, float]]]:
    """The fixed sampler with the fewest steps that is as close as a policy, and how close all that were tried are."""
    from skipstone.serving import Engine

    wanted = [(prompt, 1000 + k) for k, prompt in enumerate(prompts)]
    with Engine.of("pebble", rows=32) as engine:
        full = [future.result().pixels for future in [engine.submit(p, seed=s, policy=FULL) for p, s in wanted]]
        bar = closeness(engine, policy, wanted, full)
        found = {policy: bar}
        for steps in STEPS:
            for sampler in SAMPLERS:
                spec = f"fixed @ {sampler} / {steps}"
                found[spec] = closeness(engine, spec, wanted, full)
                if all(mine >= theirs for mine, theirs in zip(found[spec], bar, strict=True)):
                    return spec, found
    return FULL, found


def own_share(policy: str, pictures: int) -> tuple[float, float]:
    """CPU milliseconds a picture of everything but the network, and their share of all, with 16 in flight."""
    from skipstone.evaluation.models import load_embedded
    from skipstone.serving.batcher import Batcher, Sample
    from skipstone.serving.limits import Limits
    from skipstone.serving.models import ServedModel
    from skipstone.serving.requests import PictureRequest

    model = ServedModel.prepare("pebble", load_embedded("pebble"), "balanced", Limits())
    setting, network = model.choices.choose(policy, ""), [0.0]
    inner = model.backbone(PictureRequest("a"))

    class Timed:
        schedule, sites, branches = inner.schedule, inner.sites, inner.branches

        def predict(self, queries: Any) -> Any:
            began = time.thread_time()
            answers = inner.predict(queries)
            network[0] += time.thread_time() - began
            return answers

    batcher, backbone = Batcher(32), Timed()
    for _ in range(2):  # the first warms up
        network[0], began = 0.0, time.thread_time()
        for k in range(pictures):
            problem = model.problem(PictureRequest("a red apple on a blue background", seed=k), setting)
            batcher.admit(Sample(backbone, problem, setting.solver, setting.policy))
            while len(batcher) >= 16 or (k == pictures - 1 and len(batcher)):
                batcher.tick()
        whole = time.thread_time() - began
    return 1000 * (whole - network[0]) / pictures, (whole - network[0]) / whole


# -- Mixed tiers ------------------------------------------------------------------------------------


def mixed_tiers(row: Row, prompts: Sequence[str], rate: float, seconds: float) -> dict[str, list[float]]:
    """Seconds to each picture of three tiers that arrive at random (Poisson) at a rate a second."""
    rng = np.random.default_rng(0)
    waits: dict[str, list[float]] = {policy: [] for _, policy in TIERS}

    def one(k: int, policy: str, start: float) -> None:
        time.sleep(max(0.0, start - time.perf_counter()))
        ask(client, row, prompts[k % len(prompts)], k, policy)
        waits[policy].append(time.perf_counter() - start)

    with httpx.Client(limits=httpx.Limits(max_connections=500)) as client, ThreadPoolExecutor(500) as pool:
        at, begin, k = 0.0, time.perf_counter() + 0.5, 0
        while (at := at + rng.exponential(1 / rate)) < seconds:
            policy = TIERS[rng.choice(len(TIERS), p=[share for share, _ in TIERS])][1]
            pool.submit(one, k, policy, begin + at)
            k += 1
    return waits


# -- The table --------------------------------------------------------------------------------------


def print_table(rows: Sequence[Row], arguments: Any) -> None:
    first = rows[0]
    print("| served by | calls | pictures / s | against the first | pictures / CPU s |\n|---|--:|--:|--:|--:|")
    for row in rows:
        ratio = statistics.median(a / b for a, b in zip(row.speeds, first.speeds, strict=True))
        cpu = statistics.median(arguments.pictures / s for s in row.seconds)
        print(
            f"| {row.name} | {np.mean(row.calls):.1f} | {statistics.median(row.speeds):.2f} | {ratio:.2f} | {cpu:.2f} |"
        )


def measure(arguments: Any) -> None:
    """All rows, in turns, and the tables."""
    from skipstone_pebble.package import PACKAGE

    prompts = [prompt.text for prompt in PACKAGE.prompts(PROMPTS_FILE)[: arguments.prompts]]
    equal, found = find_equal(prompts, "balanced")
    with ExitStack() as stack:
        plain = stack.enter_context(started(__file__, "--plain", "--threads", str(arguments.threads)))
        serve = ("-m", "skipstone", "serve", "--port", "0", "--threads", str(arguments.threads))
        ours = stack.enter_context(started(*serve, "--max-steps", "200"))
        rows = [
            Row("plain diffusers, FastAPI and a lock, 50 steps", *plain),
            Row(f"`skipstone serve`, `{FULL}`", *ours, FULL),
            Row("`skipstone serve`, `balanced`", *ours, "balanced"),
            Row(f"`skipstone serve`, `{equal}`, as close as `balanced`", *ours, equal),
        ]
        for row in rows:
            take_turn(row, prompts, arguments.clients, arguments.clients)
            row.speeds.clear(), row.seconds.clear(), row.calls.clear()
        for turn in range(arguments.turns):
            for row in (*rows[turn % 4 :], *rows[: turn % 4]):
                take_turn(row, prompts, arguments.pictures, arguments.clients)
        print_all(rows, equal, found, arguments)
        rate = 0.8 * tier_rate(rows[1])
        waits = mixed_tiers(rows[1], prompts, rate, arguments.tier_seconds)
    print_tiers(waits, rate, arguments)


def tier_rate(full: Row) -> float:
    """Pictures a second of the mixed tiers at saturation, by their mean calls and the speed of 50."""
    mean = sum(share * int(policy.rpartition("/")[2]) for share, policy in TIERS)
    return statistics.median(full.speeds) * 50 / mean


def print_all(rows: Sequence[Row], equal: str, found: Mapping[str, tuple[float, float]], arguments: Any) -> None:
    print("# The server\n")
    print(
        f"Pebble, {arguments.clients} clients over loopback, {arguments.turns} turns of {arguments.pictures} pictures "
        f"a row, medians over turns;\n{os.cpu_count()} cores, {arguments.threads} thread(s) a server, load average "
        f"{os.getloadavg()[1]:.1f} at the end. Made by `python benchmarks/serving.py`.\n"
    )
    print_table(rows, arguments)
    bar, other = found["balanced"], found.get(equal, (float("inf"),) * 2)
    print(
        f"\nPSNR to the full run, median / lowest tenth of {arguments.prompts} prompts: `balanced` {bar[0]:.1f} / "
        f"{bar[1]:.1f} dB, `{equal}` {other[0]:.1f} / {other[1]:.1f} dB; it is the\nfixed sampler with the fewest "
        f"steps that is as close in both, of {len(SAMPLERS)} samplers at {', '.join(map(str, STEPS))} steps.\n"
    )
    print("## The engine's own time\n\nCPU time of all but the network, 16 in flight:\n")
    print("| policy | ms a picture | share |\n|---|--:|--:|")
    for policy in ("balanced", equal, FULL):
        milliseconds, share = own_share(policy, 64)
        print(f"| `{policy}` | {milliseconds:.1f} | {share:.1%} |")


def print_tiers(waits: Mapping[str, Sequence[float]], rate: float, arguments: Any) -> None:
    print(
        f"\n## Mixed tiers\n\nPoisson arrivals at {rate:.2f} pictures a second, 80 % of saturation, for "
        f"{arguments.tier_seconds:.0f} s. Seconds to the picture:\n"
    )
    print("| tier | pictures | median | p95 |\n|---|--:|--:|--:|")
    for policy, seconds in waits.items():
        print(f"| `{policy}` | {len(seconds)} | {np.median(seconds):.2f} | {np.quantile(seconds, 0.95):.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help="of each server")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=64, help="of each turn")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tier-seconds", type=float, default=60.0)
    chosen = parser.parse_args()
    if chosen.plain:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as free:
            number = free.getsockname()[1]
        serve_plain(number, chosen.threads)
    else:
        measure(chosen)
