"""What a command costs before it works: python benchmarks/startup.py > benchmarks/startup.md

Seconds of CPU (user and system, all threads) of commands in fresh interpreters, and the modules of this project that
`skipstone.adapt` imports. One thread: with more, torch spends CPU on waiting.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPEATS = 5
COMMANDS = {  # command -> at most so many seconds
    ("--help",): 0.5,
    ("list",): 0.5,
    ("generate", "a cat on a blue background", "--force"): 5.0,
}
CLOSURE = """
import sys, skipstone
skipstone.adapt
ours = [m for n, m in sys.modules.items() if n.split(".")[0].startswith("skipstone")]
files = [m.__file__ for m in ours if not m.__file__.endswith("__init__.py")]
print(len(files), sum(len(open(f).read().splitlines()) for f in files))
"""


def cpu_seconds(arguments: tuple[str, ...], folder: str) -> float:
    """Of one run of the command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "skipstone", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Print the page."""
    print("# Start of commands\n")
    print(f"CPU seconds (user and system) in fresh interpreters, one thread, median of {REPEATS} runs after one, on a")
    print("shared machine. Made by `python benchmarks/startup.py`.\n")
    print("| command | seconds | at most |\n|:--|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for arguments, limit in COMMANDS.items():
            found = [cpu_seconds(arguments, folder) for _ in range(REPEATS + 1)][1:]
            print(f"| `skipstone {' '.join(arguments)}` | {statistics.median(found):.2f} | {limit:g} |")
    closure = subprocess.run([sys.executable, "-c", CLOSURE], check=True, capture_output=True, text=True).stdout
    modules, lines = closure.split()
    print(f"\n`skipstone.adapt` imports {modules} modules of this project, {int(lines):,} lines (73 modules in 0.1.0).")


if __name__ == "__main__":
    assert Path("skipstone").is_dir(), "run it in the root of the checkout"
    main()
