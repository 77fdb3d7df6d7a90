"""Folders of results: some of the repository's own, and benchmarks of any figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PEBBLE = ROOT / "packages" / "skipstone-pebble" / "skipstone_pebble"
CERTIFICATE = PEBBLE / "weights" / "certificates" / "low"
STUDENT = PEBBLE / "students" / "pebble-progressive-2"
AGENT = ROOT / "tests" / "fixtures" / "v0_1_0" / "agent"


def bench_folder(folder: Path, psnr: Mapping[str, Sequence[float]], **header: Any) -> Path:
    """A benchmark's folder: row -> PSNR of each sample."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "version": "1", "model": "pebble", "machine": "a machine", "date": "2026-11-21 19:52 UTC", "guidance": 3.0,
        "fingerprint": {"weights": "abc", "prompts": "0123456789"}, "prompts": {"set": "some", "count": 3},
        "options": {"limit": 3}, "rows": [{"spec": f"{row} @ unipc", "label": row, "group": "ours"} for row in psnr],
    }  # fmt: skip
    (folder / "bench.json").write_text(json.dumps({**about, **header}))
    lines = [
        {"row": f"{row} @ unipc", "sample": f"p{i}:0", "calls": 10.0 + i, "values": {"psnr_full": value}}
        for row, values in psnr.items()
        for i, value in enumerate(values)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
