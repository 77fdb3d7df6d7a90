"""Outputs of a search for slopes: policies that can be used at once, and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import registry
from ..evaluation.files import write_file
from ..evaluation.json_lines import json_roundtrip
from ..policies.storage import FILE, save_policy
from .report import describe_references, describe_rows
from .slopes import SlopeResult

RESULTS = "slopes.json"


def policy_folder(out: Path, calls: int) -> Path:
    """Folder in which the policy of this many calls is saved."""
    return out / f"adaptive-{calls}"


def report_files(out: Path, calls: Sequence[int]) -> list[Path]:
    """All files that `write_report` makes."""
    return [*(policy_folder(out, n) / FILE for n in calls), out / RESULTS]


def write_report(found: SlopeResult, out: Path, about: Mapping[str, Any]) -> list[Path]:
    """Policies and figures; returns their paths.

    Args:
        found: By a search.
        out: A folder.
        about: The model, what the figures were made with, and the prompts: {"model", "fingerprint", ...}.
    """
    for calls in found.calls:
        rows = [row for row in found.rows if row.calls == calls]
        notes = {
            "found for": about.get("model"),
            "calls": calls,
            "verdict": found.words,
            "settings": about,
            "psnr": {row.label: row.psnr_statistics for row in rows},
            "references": found.agreement.words,
        }
        save_policy(found.policy(calls), policy_folder(out, calls), **json_roundtrip(notes))
    document = {
        **about,
        "verdict": found.words,
        "policies": [registry.spell(found.policy(calls)) for calls in found.calls],
        "lead": found.lead._asdict(),
        "tried": [{**slopes._asdict(), "lead": lead} for slopes, lead in found.tried.items()],
        "references": describe_references(found.agreement),
        "rows": describe_rows(found.rows),
    }
    write_file(out / RESULTS, (json.dumps(json_roundtrip(document), indent=1, ensure_ascii=False) + "\n").encode())
    return report_files(out, found.calls)
