"""What the commands of this folder have in common."""

from __future__ import annotations

import argparse
from pathlib import Path


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with networks, the folder of finished columns, and the file to write.

    Args:
        name: Of the module in this folder.
        description: The module's docstring.
    """
    parser = argparse.ArgumentParser(prog=f"python -m research.frontier.{name}", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("networks", nargs="+", help="of the zoo, pebble@3, folders of others")
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"), help="keeps finished columns")
    parser.add_argument("--out", type=Path, help="file of the table; without it, it is only printed")
    return parser
