"""Every family under every scheduler that it takes, all checks: make matrix  (writes benchmarks/matrix.md)

Tiny pipelines with random weights, so it says what holds and not how good pictures are. Resumes from matrix.jsonl,
which is removed when the table has been written. Exit status 1 where a check fails.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.progress import track

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.integrations.guest.families import FAMILIES, build  # noqa: E402
from tests.integrations.guest.matrix import CHECKS, Cell, cells  # noqa: E402

LOG, PAGE = Path(__file__).with_name("matrix.jsonl"), Path(__file__).with_name("matrix.md")


def quiet() -> None:
    """Set one thread and no messages but errors."""
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)


def run_cell(cell: Cell) -> dict[str, Any]:
    """One cell and what became of it."""
    try:
        cell.run()
        error = ""
    except Exception as e:
        error = f"{type(e).__name__}: {e}".splitlines()[0]
    return {"family": cell.family, "scheduler": cell.scheduler, "check": cell.check, "error": error}


def run_all(
    run: Callable[[Any], dict[str, Any]], asked: Iterable[Any], log: Path, workers: int
) -> list[dict[str, Any]]:
    """The results of `run` for every cell asked for; those in the log of an earlier attempt are not made again."""
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {result["cell"]: result for result in known}
    todo = [cell for cell in asked if repr(cell) not in done]
    with multiprocessing.get_context("spawn").Pool(workers, quiet) as pool, log.open("a") as file:
        made = track(pool.imap(run, todo, chunksize=25), log.stem, total=len(todo))
        for cell, result in zip(todo, made, strict=True):
            done[repr(cell)] = result | {"cell": repr(cell)}
            file.write(json.dumps(done[repr(cell)]) + "\n")
            file.flush()
    return list(done.values())


def versions(seconds: float) -> str:
    """When, of what and in which time a table was made."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    return (
        f"{time.strftime('%Y-%m-%d')}, commit {commit}, diffusers {diffusers.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {seconds / 60:.0f} min"
    )


def page(found: list[dict[str, Any]], seconds: float) -> Iterator[str]:
    """The table."""
    failed = [r for r in found if r["error"]]
    yield "# Every family under every scheduler that it takes\n"
    yield (
        f"`make matrix`, {versions(seconds)}: {len(found) - len(failed)} of {len(found)} checks hold. Tiny pipelines "
        f"with random weights, batch 2, 8 steps.\n"
    )
    for name, check in CHECKS.items():
        yield f"- **{name}**: {(check.__doc__ or '').strip()}"
    yield "\n| Family | Pipeline | Schedulers | " + " | ".join(CHECKS) + " |"
    yield "|---|---|--:|" + "--:|" * len(CHECKS)
    for name in dict.fromkeys(r["family"] for r in found):
        mine = [r for r in found if r["family"] == name]
        passed = Counter(r["check"] for r in mine if not r["error"])
        counts = [f"{passed[c]}/{sum(r['check'] == c for r in mine)}" for c in CHECKS]
        schedulers = len({r["scheduler"] for r in mine})
        yield f"| {name} | `{type(build(name)).__name__}` | {schedulers} | " + " | ".join(counts) + " |"
    yield "\nSchedulers: " + ", ".join(sorted({s for f in FAMILIES.values() for s in f.schedulers})) + ".\n"
    if failed:
        yield "## What does not hold\n"
        yield from (f"- {r['family']} / {r['scheduler']} / {r['check']}: {r['error']}" for r in failed)


def main() -> int:
    quiet()
    began = time.perf_counter()
    found = run_all(run_cell, cells(), LOG, int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    PAGE.write_text("\n".join(page(found, time.perf_counter() - began)).rstrip() + "\n", encoding="utf-8")
    LOG.unlink()
    failed = sum(bool(r["error"]) for r in found)
    print(f"{len(found) - failed} of {len(found)} checks hold; see {PAGE.relative_to(ROOT)}")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
