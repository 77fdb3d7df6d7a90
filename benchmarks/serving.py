"""Pictures a second of the server: python benchmarks/serving.py > benchmarks/serving.md

Serves Pebble by `skipstone serve` and by plain diffusers behind FastAPI, one request at a time and in batches of whole
requests, and asks each for pictures from as many clients as `--clients`, over loopback. Rows take turns, so that all
meet the same load of the machine.
`--threads` is of each server; the clients need a core of their own. Linux only: CPU seconds are read from /proc.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
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
RIVALS = Path(__file__).with_name("rivals")  # certificates of fixed samplers, for the targets of Pebble's own
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
        policy: Of its requests; "quality NAME" asks for a certificate.
        is_plain: Whether it takes steps in place of a policy.
    """

    name: str
    address: str
    process: int
    policy: str
    is_plain: bool = False
    speeds: list[float] = field(default_factory=list)  # pictures a second, of each turn
    seconds: list[float] = field(default_factory=list)  # CPU seconds of the server, each turn
    calls: list[float] = field(default_factory=list)


# -- The plain servers -----------------------------------------------------------------------------


class Waiting:
    """A request of a plain server, and the event of its picture.

    Args:
        body: Of the request.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.body, self.done, self.image = body, threading.Event(), None


def serve_plain(port: int, threads: int, most: int) -> None:
    """Diffusers behind FastAPI, in the faster memory format: what people do.

    One thread draws whole requests: the one that waits longest, and with it up to `most` - 1 others that wait and have
    as many steps. With `most` 1 that is a lock.
    """
    import torch
    import uvicorn
    from diffusers import UniPCMultistepScheduler
    from fastapi import FastAPI

    from skipstone_pebble import load_pipeline

    pipe = load_pipeline()
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    app, waiting, changed = FastAPI(), [], threading.Condition()

    def work() -> None:
        torch.set_num_threads(threads)
        while True:
            with changed:
                changed.wait_for(lambda: waiting)
                some = [w for w in waiting if w.body["steps"] == waiting[0].body["steps"]][:most]
                waiting[:] = [w for w in waiting if w not in some]
            noise = [torch.Generator().manual_seed(w.body["seed"]) for w in some]
            prompts, steps = [w.body["prompt"] for w in some], some[0].body["steps"]
            images = pipe(prompts, num_inference_steps=steps, guidance_scale=3.0, generator=noise).images
            for one, image in zip(some, images, strict=True):
                one.image = image
                one.done.set()

    @app.post("/v1/images/generations")
    def draw(body: dict[str, Any]) -> dict[str, Any]:
        one = Waiting(body)
        with changed:
            waiting.append(one)
            changed.notify()
        one.done.wait()
        out = io.BytesIO()
        one.image.save(out, format="PNG")
        return {"data": [{"b64_json": base64.b64encode(out.getvalue()).decode(), "calls": body["steps"]}]}

    threading.Thread(target=work, daemon=True).start()
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
    chosen = policy or row.policy
    if row.is_plain:
        how: dict[str, Any] = {"steps": int(chosen.rpartition("/")[2])}
    else:
        how = {"quality": chosen.split()[1]} if chosen.startswith("quality ") else {"policy": chosen}
    body = {"prompt": prompt, "seed": seed, **how}
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


def read_rivals() -> dict[str, str]:
    """Quality -> the fastest fixed sampler that holds a certificate of the same target, prompts and confidence."""
    found = {}
    for file in sorted(RIVALS.glob("*/policy.json")):
        points = json.loads(file.read_text(encoding="utf-8"))["certificate"]["points"]
        best = min((point for point in points if point["accepted"]), key=lambda point: point["calls"])
        found[file.parent.name] = f"{best['setting']} @ {best['way']}"
    return found


def own_share(policy: str, pictures: int) -> tuple[float, float]:
    """CPU milliseconds a picture of everything but the network, and their share of all, with 16 in flight."""
    from skipstone.serving.batcher import Batcher, Sample
    from skipstone.serving.loading import ModelLoader
    from skipstone.serving.requests import PictureRequest

    model = ModelLoader({"pebble": "pebble"}).load("pebble")
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
    for turn in range(2):  # the first warms up
        network[0], began = 0.0, time.thread_time()
        for k in range(pictures):
            seed = turn * pictures + k  # other pictures than those of the first turn: their weights are not cached
            problem = model.problem(PictureRequest("a red apple on a blue background", seed=seed), setting)
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
        threads = ("--threads", str(arguments.threads))
        plain = stack.enter_context(started(__file__, "--plain", "1", *threads))
        batched = stack.enter_context(started(__file__, "--plain", "16", *threads))
        ours = stack.enter_context(started("-m", "skipstone", "serve", "--port", "0", *threads))
        rows = [
            Row("plain diffusers, FastAPI and a lock, 50 steps", *plain, FULL, True),
            Row("the same, whole requests in batches of up to 16", *batched, FULL, True),
            Row(f"`skipstone serve`, `{FULL}`", *ours, FULL),
            Row("`skipstone serve`, `balanced`", *ours, "balanced"),
            Row(f"`skipstone serve`, `{equal}`, as close as `balanced`", *ours, equal),
        ]
        if not (rivals := read_rivals()):
            print("No rows of certified fixed samplers: benchmarks/rivals.py has not made them.\n")
        for quality, spec in rivals.items():
            rows.append(Row(f"`skipstone serve`, quality `{quality}`", *ours, f"quality {quality}"))
            rows.append(Row(f"`skipstone serve`, `{spec}`, the best fixed sampler certified for it", *ours, spec))
        for row in rows:
            take_turn(row, prompts, arguments.clients, arguments.clients)
            row.speeds.clear(), row.seconds.clear(), row.calls.clear()
        for turn in range(arguments.turns):
            first = turn % len(rows)
            for row in (*rows[first:], *rows[:first]):
                take_turn(row, prompts, arguments.pictures, arguments.clients)
        print_all(rows, equal, found, arguments)
        rate = 0.8 * tier_rate(rows[2])
        names = {"whole requests in batches": rows[1], "`skipstone serve`": rows[2]}
        waits = {name: mixed_tiers(row, prompts, rate, arguments.tier_seconds) for name, row in names.items()}
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


def print_tiers(waits: Mapping[str, Mapping[str, Sequence[float]]], rate: float, arguments: Any) -> None:
    print(
        f"\n## Mixed tiers\n\nPoisson arrivals at {rate:.2f} pictures a second, 80 % of what `skipstone serve` draws, "
        f"for {arguments.tier_seconds:.0f} s. Seconds to the picture:\n"
    )
    print("| served by | tier | pictures | median | p95 |\n|---|---|--:|--:|--:|")
    for name, tiers in waits.items():
        for policy, seconds in tiers.items():
            print(
                f"| {name} | `{policy}` | {len(seconds)} | {np.median(seconds):.2f} | "
                f"{np.quantile(seconds, 0.95):.2f} |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", type=int, default=0, help=argparse.SUPPRESS)
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
        serve_plain(number, chosen.threads, chosen.plain)
    else:
        measure(chosen)
