"""What the pipelines of diffusers promise, bare and adapted: make matrix  (writes benchmarks/pipeline_checks.md)

Resumes from pipeline_checks.jsonl, which is removed when the table has been written. Exit status 1 where a check ends
otherwise adapted than bare.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matrix import quiet, run_all, versions

from tests.integrations.guest.families import FAMILIES, build
from tests.integrations.guest.matrix import REFUSED
from tests.integrations.guest.pipeline_checks import CHECKS, compare_check

LOG, PAGE = Path(__file__).with_name("pipeline_checks.jsonl"), Path(__file__).with_name("pipeline_checks.md")


def run_pair(pair: tuple[str, str]) -> dict[str, Any]:
    """One check of one family and what became of it."""
    family, name = pair
    return {"family": family, "check": name, **compare_check(family, name)}


def pairs() -> list[tuple[str, str]]:
    """Every family with every check that its pipeline makes the promise of."""
    pipes = {name: build(name) for name in FAMILIES if name not in REFUSED}
    return [(family, name) for family, pipe in pipes.items() for name, check in CHECKS.items() if check.applies(pipe)]


def differs(result: dict[str, Any]) -> bool:
    """Whether a check ends otherwise adapted than bare, and not in a refusal."""
    return bool(result["fixed"] or result["third_order"]) and not result["refused"]


def rows(found: list[dict[str, Any]], key: str) -> Iterator[str]:
    """Lines of a table, one for each value of `key`."""
    for name in dict.fromkeys(r[key] for r in found):
        mine = [r for r in found if r[key] == name]
        numbers = [len(mine), *(sum(not r[column] for r in mine) for column in ("bare", "fixed", "third_order"))]
        numbers.append(sum(r["saved"] > 0 for r in mine))
        yield f"| {name} | " + " | ".join(map(str, numbers)) + " |"


def page(found: list[dict[str, Any]], seconds: float) -> Iterator[str]:
    """The tables."""
    refused = [r for r in found if r["refused"]]
    other = [r for r in found if differs(r)]
    yield "# What diffusers' pipelines promise, bare and adapted\n"
    alike = len(found) - len(refused) - len(other)
    yield (
        f"`make matrix`, {versions(seconds)}: {alike} of {len(found)} checks end alike bare, with `fixed` and with "
        f"`third_order`; {len(refused)} are refused by name. Tiny pipelines with random weights, batch 2, 8 steps.\n"
    )
    yield (
        "Alike: it passes, or ends in the same error. With `fixed` every output is that of the bare pipeline, bit for "
        "bit; with `third_order` outputs are finite and of the same shape, and what no policy may change is the same: "
        "random numbers, steps that a callback sees, files, copies. The tolerance of `third_order` is in the middle of "
        "what it measures in a family, so that the samples of a batch part.\n"
    )
    head = "Families|Pass bare|`fixed` alike|`third_order` alike|`third_order` skipped".replace("|", " | ")
    for key, title in (("check", "Check"), ("family", "Family")):
        yield f"\n| {title} | {head.replace('Families', 'Families' if key == 'check' else 'Checks')} |"
        yield "|---|" + "--:|" * 5
        yield from rows(found, key)
    yield "\n## The checks\n"
    for name, check in CHECKS.items():
        yield f"- **{name}**: {(check.function.__doc__ or '').strip()}"
    yield "\n## What the bare pipeline does not do\n"
    yield from (f"- {r['family']} / {r['check']}: {r['bare']}" for r in found if r["bare"])
    if refused:
        yield "\n## What is refused\n"
        yield from (f"- {r['family']} / {r['check']}: {r['refused']}" for r in refused)
    if other:
        yield "\n## What differs\n"
        for r in other:
            yield from (f"- {r['family']} / {r['check']} / {w}: {r[w]}" for w in ("fixed", "third_order") if r[w])


def main() -> int:
    quiet()
    began = time.perf_counter()
    found = run_all(run_pair, pairs(), LOG, int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    PAGE.write_text("\n".join(page(found, time.perf_counter() - began)).rstrip() + "\n", encoding="utf-8")
    LOG.unlink()
    failed = sum(differs(r) for r in found)
    print(f"{len(found) - failed} of {len(found)} checks end alike or are refused; see {PAGE.name}")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
