"""What must not change: decisions, records, latents and pictures, recorded on one commit and compared with another.

    python tests/snapshot/snapshot.py record FOLDER          # on the commit before, and again on the one after
    python tests/snapshot/snapshot.py compare BEFORE AFTER   # lists every difference; exit code 1 if there is any

Uses the public names of `skipstone` and its command line alone, so that the same file runs on both. The few names
that are not public are looked up in HOMES: where one has moved, add its new home there.

Numbers are compared to the bit. Left out are times, dates, versions, paths and facts about the machine. Wording
(help texts, messages, pages) is compared too, but a difference there does not fail: it is listed as "text differs".
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import difflib
import importlib
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# Names that are not public -> where they have been, newest home first.
HOMES: dict[str, tuple[str, ...]] = {
    "Mixture": (
        "skipstone.testing.mixture:Mixture",
        "skipstone.testing.backbones.mixture:Mixture",
        "skipstone.backbones.mixture:Mixture",
    ),
    "to_json": ("skipstone.trace:to_json", "skipstone.runs.trace:to_json", "skipstone.engine.trace:to_json"),
    "Training": (
        "skipstone_train.agents.training:Training",
        "skipstone_train.agents.training:AgentTraining",
        "skipstone.train.training:Training",
        "skipstone.agents.training:Training",
    ),
    "load_trace": ("skipstone.trace:load", "skipstone.runs.trace:load", "skipstone.engine.trace:load"),
    "load_config": (
        "skipstone_train.agents.config:load_config",
        "skipstone_train.agents.config:load",
        "skipstone.train.config:load",
        "skipstone.agents.config:load",
    ),
}

QUIET = {
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "NO_COLOR": "1", "TERM": "dumb",
    "COLUMNS": "100", "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg",
}  # fmt: skip
PORT = 18713  # of the judge: its address is part of what an answer is kept under
PROMPTS = ("a red apple on a blue background", "a cat left of a rocket on a yellow background")


def home(name: str) -> Any:
    """An object of HOMES, from the first home that has it."""
    for where in HOMES[name]:
        module, _, attribute = where.partition(":")
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), attribute)
    raise LookupError(f"{name} is at none of {', '.join(HOMES[name])}: add its new home to HOMES in {__file__}.")


# -- Recording --------------------------------------------------------------------------------------

Draw = Callable[["Case"], None]
CASES: dict[str, Draw] = {}


def case(draw: Draw) -> Draw:
    """Enter a case under its name."""
    CASES[draw.__name__] = draw
    return draw


@dataclass
class Case:
    """The folder of a case, and what is written into it.

    Args:
        folder: Of the case; commands run in it.
        values: What is written as values.json in the end.
        arrays: What is written as arrays.npz in the end.
        commands: How many commands have run.
    """

    folder: Path
    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    commands: int = 0

    def write(self, name: str, content: str) -> str:
        """A text file; returns its name."""
        (self.folder / name).write_text(content, encoding="utf-8")
        return name

    def close(self) -> None:
        """Write values and arrays."""
        import numpy as np

        if self.values:
            self.write("values.json", json.dumps(self.values, indent=1))
        if self.arrays:
            arrays: dict[str, Any] = {name: np.asarray(value) for name, value in self.arrays.items()}
            np.savez(self.folder / "arrays.npz", **arrays)

    def run(self, *arguments: str, expect: int = 0) -> None:
        """`skipstone ARGUMENTS...`: its files stay in the folder, its exit code and what it says beside them."""
        command = [str(Path(sys.executable).with_name("skipstone")), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env={**os.environ, **QUIET}, capture_output=True, text=True, check=False
        )
        self.commands += 1
        name = f"command-{self.commands:02d}"
        self.values[name] = {"arguments": list(arguments), "code": done.returncode}
        lines = done.stdout.splitlines()
        told = bool(lines) and all(line.startswith("{") for line in lines)
        self.write(f"{name}-stdout.{'jsonl' if told else 'txt'}", done.stdout)
        self.write(f"{name}-stderr.txt", done.stderr)
        if done.returncode != expect:
            raise RuntimeError(f"skipstone {' '.join(arguments)} left {done.returncode}:\n{done.stderr[-2000:]}")

    def result(self, name: str, result: Any, trace: bool = True) -> None:
        """A run of the engine: latent, calls, one letter a step, and the whole trace."""
        document = json.loads(home("to_json")(result.run))["run"]
        self.arrays[name] = result.x
        self.values[name] = {
            "decisions": "".join(map(letter, document["past"])),
            "calls": math.fsum(a["cost"] for a in document["past"]),
            "landings": [a["t_next"] for a in document["past"]],
            "status": result.status.name,
        }
        if trace:
            self.values[name]["trace"] = document


def letter(attempt: Mapping[str, Any]) -> str:
    """One letter for an attempt of a trace: C call, c cached sites, . forecast, F finish, R refine; x is rejected."""
    kinds = {"full": "C", "cached": "c", "forecast": ".", "finish": "F", "refine": "R"}
    return kinds[attempt["plan"]["evaluate"]["kind"]] + ("x" if attempt["accepted"] is False else "")


def record(folder: Path, only: str) -> int:
    """Run every case into a folder of its own. Returns the exit code."""
    import torch

    import skipstone

    os.environ.update({**QUIET, "SKIPSTONE_CACHE": str(folder.resolve() / "cache")})
    torch.set_num_threads(1)
    chosen = {name: draw for name, draw in CASES.items() if re.search(only, name)}
    if there := [name for name in chosen if (folder / name).exists()]:
        raise SystemExit(f"{folder} holds {', '.join(there)}: name another folder, or say --only for other cases.")
    folder.mkdir(parents=True, exist_ok=True)
    package = Path(skipstone.__file__).resolve().parent
    roots = [str(folder.resolve()), str(package), str(package.parent), sys.prefix, str(Path.home())]
    (folder / "about.json").write_text(json.dumps({"roots": roots, "version": skipstone.__version__}))
    failed = [name for name, draw in chosen.items() if not drawn(folder / name, draw)]
    if failed:
        print(f"Failed: {', '.join(failed)}")
    return 1 if failed else 0


def drawn(folder: Path, draw: Draw) -> bool:
    """Run a case; whether it came through."""
    import torch

    folder.mkdir()
    made, began = Case(folder), worked()
    torch.manual_seed(0)
    try:
        draw(made)
    except Exception:
        made.values["failed"] = True
        made.write("failed.txt", traceback.format_exc())
        traceback.print_exc()
    made.close()
    print(f"{folder.name:20} {worked() - began:6.1f} s of a core", flush=True)
    return "failed" not in made.values


def worked() -> float:
    """Seconds of a core so far, of commands too."""
    return sum(os.times()[:4])


# -- Cases: names, grids, and runs on an exact backbone ---------------------------------------------

NEUTRAL = (
    "agent(path='')", "budget(calls=1000000000)", "early_stop(tol=0.0)", "error_control(tol=0.0)", "forecast(order=1)",
    "guidance_gate(below=0.0)", "interval(every=1)", "mask(skips='')", "path(times='')", "random_skip(calls=1000000)",
    "refine(steps=0)", "sada(max_skip=0)", "stride(tol=0.0)", "third_order(max_skip=0)",
    "third_order_released(warmup=1000000)", "zeus(max_skip=0)",
)  # fmt: skip
SET = (
    "safe", "fast", "adaptive_diffusion", "stride(tol=0.05)", "third_order(tol=0.9, max_skip=3)", "interval(every=3)",
    "third_order(tol=0.5) | forecast(order=1) | budget(calls=12)", "mask(skips='4-6,9,12')", "early_stop(tol=0.3)",
    "path(times='0.8 0.55 0.3 0.12', of='x0')", "error_control(tol=0.05)", "guidance_gate(below=0.6)", "pid(rtol=0.2)",
    "random_skip(calls=9)", "refine(steps=2, back=0.3)", "agent(path='pebble-even', price=1.0)", "budget(calls=7.5)",
    "stride(tol=0.02) | guidance_gate(below=0.5)",
)  # fmt: skip
SOLVERS = (
    "adams", "adams(of='x0')", "ddim", "ddim(eta=0.7)", "ddpm", "ddpm(variance='large')", "dpm_adaptive",
    "dpm_adaptive(order=2)", "dpmpp", "dpmpp(order=1)", "dpmpp(order=3)", "dpmpp(order=3, released=True)",
    "dpmpp_sde", "euler", "heun", "unipc", "unipc(order=3)",
)  # fmt: skip
GRIDS = ("karras", "karras(rho=5.0)", "leading", "leading(offset=1)", "logsnr", "trailing", "uniform")


@case
def names(made: Case) -> None:
    """What there is, how it is spelt, and the times of every grid on every schedule."""
    import skipstone

    for kind in ("policy", "solver", "grid", "schedule", "metric", "peer"):
        made.values[kind] = list(skipstone.names(kind))
    specs = [("policy", s) for s in (*skipstone.names("policy"), *NEUTRAL, *SET)]
    specs += [("solver", s) for s in SOLVERS] + [("grid", s) for s in GRIDS]
    made.values["spelt"] = {f"{k} {s}": skipstone.spell(skipstone.parse(k, s)) for k, s in specs}
    for name in skipstone.names("schedule"):
        for grid in GRIDS:
            try:
                times = skipstone.parse("grid", grid).times(skipstone.parse("schedule", name), 9)
            except (skipstone.SkipstoneError, TypeError) as e:
                times = [type(e).__name__]
            made.values[f"{grid} on {name}"] = list(times)
    made.write("public.txt", "\n".join(dir(skipstone)))
    made.write("cited.txt", "\n".join(skipstone.cite(skipstone.policy(n)) for n in skipstone.names("policy")))


def mixture_problem(backbone: Any, seed: int, steps: int, grid: str = "uniform") -> Any:
    """A sample with noise of its own; its condition is a component of the mixture."""
    import numpy as np

    import skipstone

    x = np.random.default_rng(seed).standard_normal((4, 8, 8))
    times = skipstone.parse("grid", grid).times(backbone.schedule, steps)
    return skipstone.Problem(backbone.schedule, x, times, seed % 3, seed, backbone.branches)


@case
def policies(made: Case) -> None:
    """Every policy at default, at neutral and at other settings, on two solvers, one by one."""
    import skipstone

    backbone = home("Mixture")(guidance=3.0)
    problem = mixture_problem(backbone, 0, 24)
    for solver in ("ddim", "dpmpp"):
        for spec in (*skipstone.names("policy"), *NEUTRAL, *SET):
            result = skipstone.denoise(backbone, problem, skipstone.solver(solver), skipstone.policy(spec))
            made.result(f"{spec} @ {solver}", result, trace=spec not in NEUTRAL)
            made.values[f"{spec} @ {solver}"]["explained"] = skipstone.explain(result.run).count("\n")
            again = skipstone.replay(backbone, problem, skipstone.solver(solver), result.run)
            made.values[f"{spec} @ {solver}"]["replayed"] = bool((again.x == result.x).all())


@case
def batches(made: Case) -> None:
    """Every policy on three samples together, with a policy for each in the end."""
    import skipstone

    backbone = home("Mixture")(guidance=3.0, prediction="v")
    problems = [mixture_problem(backbone, seed, steps) for seed, steps in ((0, 20), (1, 20), (2, 13))]
    for spec in (*skipstone.names("policy"), *SET):
        solver = skipstone.policy(spec).solver or "unipc"
        results = skipstone.denoise_many(backbone, problems, skipstone.solver(solver), skipstone.policy(spec))
        for i, result in enumerate(results):
            made.result(f"{spec} {i}", result, trace=False)
    several = [skipstone.policy(spec) for spec in ("stride", "third_order(tol=0.9)", "fixed")]
    for i, result in enumerate(skipstone.denoise_many(backbone, problems, skipstone.solver("adams"), several)):
        made.result(f"several {i}", result)


@case
def solvers(made: Case) -> None:
    """Every solver on every grid, nothing skipped, and under one policy that skips."""
    import skipstone

    backbone = home("Mixture")(guidance=2.0, prediction="v")
    for solver in SOLVERS:
        for grid in GRIDS:
            problem = mixture_problem(backbone, 1, 10, grid)
            for spec in ("fixed", "third_order(tol=0.9)"):
                result = skipstone.denoise(backbone, problem, skipstone.solver(solver), skipstone.policy(spec))
                made.result(f"{spec} @ {solver} / {grid}", result, trace=False)


# -- Cases: the two models that ship, in the engine and as a guest ----------------------------------

DECIDING = ("fixed", "balanced", "error_control", "agent", "third_order")


@case
def engine_pebble(made: Case) -> None:
    """Pebble in the engine's loop."""
    engine(made, "pebble")


@case
def engine_pebble_dit(made: Case) -> None:
    """Pebble-DiT in the engine's loop."""
    engine(made, "pebble-dit")


def engine(made: Case, model: str) -> None:
    """Latents and pictures of two samples together, and of the second alone."""
    import numpy as np

    import skipstone

    pebble = skipstone.Pebble.load(model)
    problems = [pebble.problem(prompt, seed=3 + i, steps=24) for i, prompt in enumerate(PROMPTS)]
    for spec in DECIDING:
        policy = skipstone.policy(spec)
        solver = skipstone.solver(policy.solver or "unipc")
        together = skipstone.denoise_many(pebble.backbone, problems, solver, policy)
        alone = skipstone.denoise(pebble.backbone, problems[1], solver, policy)
        for name, result in (("0", together[0]), ("1", together[1]), ("alone", alone)):
            made.result(f"{spec} {name}", result, trace=name == "alone")
            made.arrays[f"{spec} {name} picture"] = pebble.decode([result.x])[0]
            made.arrays[f"{spec} {name} rounded"] = np.asarray(pebble.image(result.x))


@case
def guest_pebble(made: Case) -> None:
    """Pebble's diffusers pipeline, adapted."""
    guest(made, "StableDiffusionPipeline")


@case
def guest_pebble_dit(made: Case) -> None:
    """Pebble-DiT's diffusers pipeline, adapted."""
    guest(made, "StableDiffusion3Pipeline")


def shipped(kind: str) -> Path:
    """The folder of a model that ships, wherever it lies, by the class of its pipeline."""
    import skipstone

    home = sys.modules[skipstone.Pebble.__module__].__file__ or ""
    for index in sorted(Path(home).parent.rglob("model_index.json")):
        if json.loads(index.read_text(encoding="utf-8"))["_class_name"] == kind:
            return index.parent
    raise LookupError(f"No {kind} ships.")


def guest(made: Case, kind: str) -> None:
    """Latents of a batch of two, and the picture of a single sample."""
    import diffusers
    import torch

    import skipstone

    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.DiffusionPipeline.from_pretrained(shipped(kind))
    pipe.set_progress_bar_config(disable=True)

    def draw(count: int, form: str) -> Any:
        noise = [torch.Generator().manual_seed(7 + i) for i in range(count)]
        said = {"num_inference_steps": 14, "generator": noise, "output_type": form, "guidance_scale": 3.0}
        return pipe(list(PROMPTS[:count]), **said).images

    made.arrays["bare latent"], made.arrays["bare picture"] = draw(2, "latent"), draw(2, "np")
    for spec in (*DECIDING, "guidance_gate(below=0.6)", "interval(every=2) | budget(calls=9)"):
        for count in (1, 2):
            with skipstone.adapt(pipe, spec) as adapted:
                made.arrays[f"{spec} {count}"] = draw(count, "np" if count == 1 else "latent")
                account = json.loads(adapted.last.to_json())
                made.values[f"{spec} {count}"] = account
                adapted.last[count - 1].save(made.folder / f"{len(made.values):02d}.trace.json", spec=spec)
    made.arrays["bare again"] = draw(2, "np")


# -- Cases: the command line ------------------------------------------------------------------------

COMMANDS = (
    "", "generate", "compare", "calibrate", "audit", "tune", "bench", "report", "prefer", "demo", "explain", "check",
    "list", "train", "train agent", "train log", "evaluate", "evaluate agent",
)  # fmt: skip
FEW = "\n".join(
    f"a {colour} {thing} on a white background"
    for colour in ("red", "blue", "green", "yellow")
    for thing in ("apple", "cat", "bus")
)
EXACT = ("--converged", "fixed @ dpmpp / trailing / 30", "--converged", "fixed @ unipc / trailing / 24")


@case
def help_texts(made: Case) -> None:
    """--help of every command, lists of every kind, the version."""
    for command in COMMANDS:
        made.run(*command.split(), "--help")
    for shelf in ("policies", "solvers", "grids", "schedules", "metrics", "peers"):
        made.run("list", shelf)
    made.run("list")
    made.run("--version")


@case
def bad_input(made: Case) -> None:
    """Exit codes of what cannot be understood."""
    made.run("generate", "a cat", "--policy", "thrid_order", expect=2)
    made.run("generate", "a cat", "--policy", "third_order(tol=-1)", expect=2)
    made.run("generate", "", expect=2)
    made.run("compare", "a cat", "-p", "fewer", expect=2)
    made.run("explain", "nothing.json", expect=2)
    made.run("bench", "--out", "nothing", "--resume", expect=2)
    made.run("train", "agent", "learner.stpes=3", expect=2)
    made.run("check", "stride(tol=)", expect=2)
    made.run("audit", "nothing", expect=2)
    made.run("nothing", expect=2)


@case
def generate(made: Case) -> None:
    """Pictures, their metadata and traces, in the engine and as a guest; traces explained."""
    told = ("--json", "--trace", "-n", "2")
    made.run("generate", PROMPTS[0], *told, "--out", "balanced")
    made.run("generate", PROMPTS[1], *told, "--policy", "third_order | budget(calls=20)", "--solver", "dpmpp",
             "--grid", "karras", "--steps", "24", "--guidance", "2", "--seed", "5", "--out", "said")  # fmt: skip
    made.run("generate", PROMPTS[0], *told, "--as-guest", "--steps", "20", "--out", "guest")
    made.run("generate", PROMPTS[1], *told, "--model", "pebble-dit", "--policy", "agent", "--out", "dit")
    made.run("generate", PROMPTS[0], "--steps", "8", "--out", "plain.png")
    made.run("explain", "balanced/a-red-apple-on-a-blue-background-0.trace.json")
    made.run("explain", "guest/a-red-apple-on-a-blue-background-1.trace.json")
    made.run("check", "third_order(tol=0.05)")
    made.run("check", "early_stop(tol=0.3)")
    made.run("check", "third_order | budget(calls=20)", expect=1)  # a chain has no references of its own


@case
def compare_columns(made: Case) -> None:
    """Sheets, timelines, tables, records: in the engine, and with peers in pipelines."""
    made.run("compare", *PROMPTS, "-p", "balanced", "-p", "fewer", "-p", "error_control @ dpmpp / 20", "--repeats", "1",
             "--out", "engine")  # fmt: skip
    made.run("compare", *PROMPTS, "-p", "deepcache", "-p", "stride @ 20", "-p", "fewer @ ddim", "--as-guest",
             "--steps", "20", "--repeats", "1", "--out", "guest")  # fmt: skip
    made.run("compare", PROMPTS[0], "-n", "2", "-p", "taylorseer", "-p", "mag_cache",
             "--model", "pebble-dit", "--as-guest", "--steps", "16", "--repeats", "1", "--out", "dit")  # fmt: skip


@case
def bench(made: Case) -> None:
    """A small benchmark with every kind of row, gone on with, and reported again."""
    made.run("bench", "--limit", "2", "--tuned", "2", "--budget", "6", "--steps", "10", "--searched", "1", "--oracle",
             "1", "--timed", "0", "--metric", "psnr", "--metric", "ssim", "--metric", "judge", "--peers", "deepcache",
             "-p", "balanced", "-p", "third_order", *EXACT)  # fmt: skip
    made.run("bench", "--out", "bench", "--resume")
    made.run("report", "bench")


@case
def calibrate(made: Case) -> None:
    """Two calibrations, a policy from a certificate, a promise that nothing keeps, and an audit."""
    made.write("prompts.txt", FEW)
    asked = ("calibrate", "--prompts", "prompts.txt", "--cache", "cache", "--steps", "10")
    ladder = ("-p", "stride(tol=0.0)", "-p", "stride(tol=0.02)", "-p", "stride(tol=9.0)")
    made.run(*asked, *ladder, "--target", "psnr >= 14 @ 60%", "--confidence", "0.7", "--out", "mine")
    made.run("generate", PROMPTS[0], "--policy", "mine", "--steps", "10", "--json", "--out", "kept.png")
    made.run("audit", "mine", "--samples", "2", "--cache", "cache")
    made.run("audit", "mine", "--samples", "1", "--cache", "cache")
    made.run(*asked, "--target", "ssim >= 0.5 @ mean", "--confidence", "none", "--samplers", "-p", "interval(every=2)",
             "--as-guest", "--cache", "guest-cache", "--out", "guest")  # fmt: skip
    made.run(*asked, "-p", "stride(tol=9.0)", "--target", "psnr >= 95 @ 60%", "--confidence", "0.7", "--out", "none",
             expect=3)  # fmt: skip


@case
def tune_and_log(made: Case) -> None:
    """Grids found for Pebble, used, and logged trajectories drawn along them."""
    made.write("prompts.txt", FEW)
    made.run("tune", "--prompts", "prompts.txt", "--limit", "2", "--fine", "16", "--calls", "4", "--calls", "6",
             "--refine", "1", "--out", "grids")  # fmt: skip
    made.run("generate", PROMPTS[0], "--policy", "grids/path-6", "--json", "--out", "a.png")
    made.run("train", "log", "--prompts", "prompts.txt", "--limit", "4", "--fine", "100", "--dimensions", "4",
             "--guide", "grids/path-4", "--guide", "grids/path-6", "--out", "log.npz")  # fmt: skip


TOY = "{name: toy, actions: [continue, skip 2, stop], hardness: [0.02, 5.0], prices: [1.0]}"
LEARNERS = {
    "search": "{name: search, candidates: 6, episodes: 16, warm: 16}",
    "ppo": "ppo",
    "fitted_q": "fitted_q",
}


@case
def train_toy(made: Case) -> None:
    """Agents on the toy: by the command without a round of learning, and by each learner for so many decisions."""
    common = f"environment: {TOY}\nslots: 16\nheld_out: 64\ntracking: none\n"
    made.write("agent.yaml", f"{common}learner: {LEARNERS['search']}\n")
    made.run("train", "agent", "--config", "agent.yaml", "--minutes", "1e-9", "--out", "command")
    for name, learner in LEARNERS.items():
        made.write(f"{name}.yaml", f"{common}learner: {learner}\ncurriculum: {{first: 0.5, whole: 0.3}}\n")
        trained(made, name, [], 6_000)
    made.write("stopping.yaml", f"{common}learner: stopping\n")
    trained(made, "stopping", ["environment.actions=[continue, stop]"], 3_000)


@case
def train_pebble(made: Case) -> None:
    """Agents on Pebble's log; played, and evaluated beside what has to be beaten."""
    about = "environment: {name: pebble, judged: false, prices: [0.5, 1.0]}\nslots: 32\ntracking: none\n"
    made.write("search.yaml", f"{about}learner: {{name: search, candidates: 4, episodes: 32, warm: 32}}\n")
    made.write("ppo.yaml", f"{about}learner: ppo\n")
    for name in ("search", "ppo"):
        trained(made, name, [], 3_000)
    made.run("generate", PROMPTS[0], "--policy", "agent(path='ppo', price=1.0)", "--json", "--trace", "--out", "a.png")
    made.run("evaluate", "agent", "pebble-even", "--limit", "2", "--calls", "6", "--rule", "stride(tol=0.05)", "--full",
             "fixed @ ddim / trailing / 12", "--price", "1", *EXACT, "--out", "verdicts")  # fmt: skip
    made.run("evaluate", "agent", "--out", "verdicts", "--resume")


def trained(made: Case, name: str, changes: list[str], steps: int) -> None:
    """A training by NAME.yaml of so many decisions, so that its result does not depend on the machine's speed."""
    config = home("load_config")(made.folder / f"{name}.yaml", changes)
    home("Training")(config, made.folder / name, math.inf, 0, steps).run()


@case
def prefer(made: Case) -> None:
    """A judge on this machine that prefers the brighter picture; stopped by a cap, and gone on with."""
    squares(made.folder)
    judge = ("-j", f"bright@http://127.0.0.1:{PORT}/v1", "--together", "1", "--side", "64", "--prompts", "prompts.csv")
    with brighter():
        made.run("prefer", "dark", "bright", *judge, "--calls", "3")
        made.run("prefer", "dark", "bright", *judge)
    made.run("prefer", "dark", "bright", *judge)  # nothing is open: nobody is asked


def squares(folder: Path) -> None:
    """Four dark squares and four bright ones, each with a mark of its own, and their prompts."""
    from PIL import Image

    for row, light in (("dark", 40), ("bright", 200)):
        (folder / row).mkdir()
        for k in range(4):
            page = Image.new("RGB", (16, 16), (light, light, light))
            page.putpixel((k, 0), (255, 0, 0))
            page.save(folder / row / f"{k}.png")
    lines = "".join(f'{k},"thing {k}, please",a\n' for k in range(4))
    (folder / "prompts.csv").write_text(f"name,prompt,category\n{lines}")


@contextlib.contextmanager
def brighter() -> Iterator[list[str]]:
    """An endpoint that prefers the brighter of two pictures; gives the list of what it has said."""
    answers: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answers.append(brightest(body))
            said = json.dumps({"winner": answers[-1], "reason": "it is brighter"})
            sent: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": said}}]}
            sent |= {"usage": {"prompt_tokens": 1000, "completion_tokens": 20}}
            raw = json.dumps(sent).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield answers
    finally:
        server.shutdown()
        server.server_close()


def brightest(body: Mapping[str, Any]) -> str:
    """Which half of the image of a request is brighter."""
    import base64

    from PIL import Image, ImageStat

    [uri] = [p["image_url"]["url"] for p in body["messages"][0]["content"] if p["type"] == "image_url"]
    both = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L")
    halves = [both.crop((0, 0, both.width // 2, both.height)), both.crop((both.width // 2, 0, *both.size))]
    left, right = (ImageStat.Stat(half).mean[0] for half in halves)
    return "left" if left > right else "right"


# -- Comparing --------------------------------------------------------------------------------------

PASSING = re.compile(
    r"(.*_)?(seconds|date|version|versions|machine|skipstone|torch|diffusers|python|time|took|peak|peak_bytes|memory|minutes)"
)
MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?( UTC)?"), "DATE"),
    (re.compile(r"\b[Ss]kipstone \d+\.\d+\.\d+\S*"), "skipstone VERSION"),
    (re.compile(r"\d+(\.\d+)? (s|seconds|minutes)\b"), "TIME"),
    (re.compile(r"[\d.]+ of [\d.]+ GB|peak(&#34;|\"): \d+"), "MEMORY"),
    (re.compile(r" *\d+\.\d\d(?=\s+\d\.\d\d$)", re.MULTILINE), " TIME"),  # in a table, before the judge's score
    (re.compile(r"id=\"[^\"]*\"|url\(#[^)]*\)|href=\"#[^\"]*\""), "ID"),
)
HASH = re.compile(r"[0-9a-f]{16}")  # folders named by a hash of a configuration, the version among it
TIMED = ("curve.png",)  # pictures with an axis of seconds: their size alone is compared, curve.csv has the numbers
MOST = 8  # differences of a file that are listed


@dataclass
class Content:
    """A file, taken apart: values are compared to the bit, text as wording."""

    values: dict[str, Any] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Recorded:
    """A folder that `record` has written."""

    folder: Path
    roots: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> Recorded:
        """The folder; longer roots are masked first."""
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        return cls(folder, tuple(sorted(about["roots"], key=len, reverse=True)))

    @property
    def files(self) -> dict[str, Path]:
        """Every file by its name, in which folders that are named by a hash have no name of their own."""
        found: dict[str, Path] = {}
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file() and p.name != "about.json"):
            parts = path.relative_to(self.folder).parts
            name = "/".join("HASH" if HASH.fullmatch(part) else part for part in parts)
            if name in found:
                raise SystemExit(f"{name} stands for two files in {self.folder}: {found[name]} and {path}.")
            found[name] = path
        return found

    def masked(self, text: str) -> str:
        """A text without what may differ from one machine or minute to the next."""
        for root in self.roots:
            text = text.replace(root, "ROOT")
        for pattern, word in MASKS:
            text = pattern.sub(word, text)
        return text

    def content(self, path: Path) -> Content:
        """A file, taken apart by its kind."""
        return READERS.get(path.suffix.lower(), read_bytes)(self, path)

    def flat(self, value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
        """Leaves of nested mappings and lists by name, those left out that may pass."""
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not PASSING.fullmatch(str(key)):
                    yield from self.flat(inner, f"{name}.{key}" if name else str(key))
            yield from [] if value else [(name, "{}")]
        elif isinstance(value, list | tuple):
            for i, inner in enumerate(value):
                yield from self.flat(inner, f"{name}[{i}]")
            yield f"{name} length", len(value)
        else:
            yield name, self.masked(value) if isinstance(value, str) else value


def read_json(where: Recorded, path: Path) -> Content:
    """One JSON document."""
    return Content(dict(where.flat(json.loads(path.read_text(encoding="utf-8")))))


def read_jsonl(where: Recorded, path: Path) -> Content:
    """JSON, a document a line."""
    return Content(dict(where.flat([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])))


def read_yaml(where: Recorded, path: Path) -> Content:
    """A configuration."""
    import yaml

    return Content(dict(where.flat(yaml.safe_load(path.read_text(encoding="utf-8")))))


def read_csv(where: Recorded, path: Path) -> Content:
    """A table with a head."""
    with path.open(encoding="utf-8", newline="") as stream:
        return Content(dict(where.flat(list(csv.DictReader(stream)))))


def read_npz(where: Recorded, path: Path) -> Content:
    """Arrays."""
    import numpy as np

    with np.load(path) as found:
        return Content({name: found[name] for name in found.files})


def read_picture(where: Recorded, path: Path) -> Content:
    """The pixels of every frame, and the metadata."""
    import numpy as np
    from PIL import Image, ImageSequence

    with Image.open(path) as picture:
        if path.name in TIMED:
            return Content({"size": picture.size})
        frames = {f"frame {i}": np.asarray(frame.copy()) for i, frame in enumerate(ImageSequence.Iterator(picture))}
        said = {k: v for k, v in picture.info.items() if isinstance(v, str) and k != "Software"}
    return Content({**frames, **dict(where.flat(said))})


def read_safetensors(where: Recorded, path: Path) -> Content:
    """Tensors, and the JSON that is kept beside them."""
    from safetensors import safe_open

    with safe_open(str(path), "numpy") as file:
        said = {k: json.loads(v) if v.startswith("{") else v for k, v in (file.metadata() or {}).items()}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    return Content({**arrays, **dict(where.flat(said))})


def read_checkpoint(where: Recorded, path: Path) -> Content:
    """What torch.save wrote: the state of a training that can be gone on with."""
    import torch

    found = dict(where.flat(torch.load(path, weights_only=True)))
    return Content({k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in found.items()})


def read_markdown(where: Recorded, path: Path) -> Content:
    """The cells of tables are values, columns of seconds left out; the rest is wording."""
    values, text, head = dict[str, Any](), [], list[str]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        if not line.startswith("|"):
            head = []
            text.append(line)
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        head = head or cells
        kept = [where.masked(c) for h, c in zip(head, cells, strict=False) if "second" not in h]
        values[f"line {number}"] = " | ".join(kept)
    return Content(values, where.masked("\n".join(text)))


def read_text(where: Recorded, path: Path) -> Content:
    """Wording."""
    return Content(text=where.masked(path.read_text(encoding="utf-8")))


def read_bytes(where: Recorded, path: Path) -> Content:
    """Anything else."""
    return Content({"bytes": path.read_bytes()})


READERS: dict[str, Callable[[Recorded, Path], Content]] = {
    ".json": read_json, ".jsonl": read_jsonl, ".yaml": read_yaml, ".csv": read_csv, ".npz": read_npz,
    ".png": read_picture, ".webp": read_picture, ".safetensors": read_safetensors, ".pt": read_checkpoint,
    ".md": read_markdown, ".txt": read_text, ".html": read_text,
}  # fmt: skip


def compare(before: Path, after: Path, only: str) -> int:
    """List every difference. Returns the exit code."""
    a, b = Recorded.of(before), Recorded.of(after)
    mine, theirs = ({n: p for n, p in r.files.items() if re.search(only, n.split("/")[0])} for r in (a, b))
    failed, worded, values = 0, 0, 0
    for name in sorted({*mine, *theirs}):
        if name not in mine or name not in theirs:
            failed += 1
            print(f"{'ADDED  ' if name in theirs else 'MISSING'} {name}")
            continue
        one, other = a.content(mine[name]), b.content(theirs[name])
        values += len(one.values)
        found = list(differences(one.values, other.values))
        failed += len(found)
        for line in found[:MOST]:
            print(f"DIFFERS {name}: {line}")
        if len(found) > MOST:
            print(f"DIFFERS {name}: and {len(found) - MOST} more")
        if one.text != other.text:
            worded += 1
            print(f"text differs: {name}")
            print("\n".join(f"    {line}" for line in changed_lines(one.text, other.text)))
    print(f"{len(mine)} files, {values} values: {failed} differences, {worded} texts differ.")
    return 1 if failed else 0


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """A line for each value that is not the same."""
    for name in one:
        if name not in other:
            yield f"{name} is missing"
        elif not same(one[name], other[name]):
            yield f"{name}: {shown(one[name], other[name])}"
    for name in other.keys() - one.keys():
        yield f"{name} is added"


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal to the bit."""
    import numpy as np

    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        alike = isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and (a.dtype, a.shape) == (b.dtype, b.shape)
        return alike and a.tobytes() == b.tobytes()
    return type(a) is type(b) and repr(a) == repr(b)


def shown(a: Any, b: Any) -> str:
    """Two values that differ."""
    import numpy as np

    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return f"{a.dtype} {a.shape} before, {b.dtype} {b.shape} after"
        if a.dtype.kind in "fiub":
            gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
            return f"{np.count_nonzero(gap)} of {a.size} numbers differ, by {gap.max():.3g} at most"
        return "differs"
    return f"{repr(a)[:160]} before, {repr(b)[:160]} after"


def changed_lines(a: str, b: str) -> list[str]:
    """The lines of two texts that differ."""
    found = list(difflib.unified_diff(a.splitlines(), b.splitlines(), lineterm="", n=0))[2:]
    lines = [line[:160] for line in found if not line.startswith("@@")]
    return lines if len(lines) <= MOST else [*lines[:MOST], f"and {len(lines) - MOST} more"]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help=f"run the cases: {', '.join(CASES)}")
    recording.add_argument("folder", type=Path)
    comparing = commands.add_parser("compare", help="list every difference of two recordings")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    for one in (recording, comparing):
        one.add_argument("--only", default="", help="cases whose name this regular expression finds")
    said = parser.parse_args()
    if said.command == "record":
        return record(said.folder, said.only)
    return compare(said.before, said.after, said.only)


if __name__ == "__main__":
    sys.exit(main())
