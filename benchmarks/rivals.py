"""Certify fixed samplers for the targets of Pebble's own certificates: python benchmarks/rivals.py

Writes `benchmarks/rivals/QUALITY`, which `benchmarks/serving.py` reads. Target, prompts, seed and confidence are those
of the certificate that ships, only the settings differ. About 10 minutes of one core; `--quality` makes one of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from skipstone_pebble import package

CERTIFICATES = Path(package.__file__).with_name("weights") / "certificates"
NONE_PROMISED = 3  # exit code of calibrate; its message says which sampler was nearest
RIVALS = Path(__file__).with_name("rivals")
SAMPLERS = ("unipc / trailing", "dpmpp / trailing", "dpmpp / karras")
STEPS = {
    "low": range(8, 17, 2),
    "medium": range(12, 23, 2),
    "high": range(20, 41, 4),
}  # where 90 % of prompts meet them


def certify(quality: str) -> None:
    """Run `skipstone calibrate` on the fixed samplers of a quality."""
    shipped = json.loads((CERTIFICATES / quality / "policy.json").read_text(encoding="utf-8"))["certificate"]
    columns = [f"fixed @ {sampler} / {steps}" for sampler in SAMPLERS for steps in STEPS[quality]]
    command = [sys.executable, "-m", "skipstone", "calibrate", "--model", "pebble"]
    command += ["--prompts", shipped["prompts"]["source"], "--target", shipped["target"]]
    command += ["--confidence", str(shipped["confidence"]), "--seed", str(shipped["seed"])]
    command += ["--out", str(RIVALS / quality), "--force"]
    code = subprocess.run([*command, *(word for column in columns for word in ("--policy", column))]).returncode
    if code not in (0, NONE_PROMISED):
        sys.exit(code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quality", choices=sorted(STEPS), action="append", help="which; all by default")
    for chosen in parser.parse_args().quality or sorted(STEPS):
        certify(chosen)
