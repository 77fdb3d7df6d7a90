"""Every command that takes a file of prompts takes --format, and hands it to the one reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import all_options
from outcome import Shell

from skipstone.policies.storage import save_policy

MODEL = ("--model", "MODEL")
ARGUMENTS: dict[str, tuple[str, ...]] = {  # all but --prompts and --format
    "calibrate": (*MODEL, "--target", "psnr >= 20 @ 60%", "--out", "out"),
    "compare": (*MODEL, "-p", "fast", "--out", "out"),
    "estimate": MODEL,
    "tune": (*MODEL, "--out", "out"),
    "bench": (*MODEL, "--out", "out"),
    "prefer": ("ours", "theirs", "-j", "m@http://localhost:1/v1", "--dry-run"),
    "train log": (*MODEL, "--guide", "path-4", "--out", "out.npz"),
    "distill": (*MODEL, "--out", "out"),
    "search": (*MODEL, "--space", "space.yaml", "--out", "out"),
    "evaluate agent": ("pebble", *MODEL, "--out", "out"),
}
AUDIT = "audit"  # needs a calibrated policy, see test_calibrate.py


def test_every_command_that_takes_prompts_takes_their_format() -> None:
    found = {name: options for name, options in all_options().items() if "prompts" in options}
    assert set(found) == {*ARGUMENTS, AUDIT}
    assert all("prompt_format" in options for options in found.values())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_format_reaches_the_reader(name: str, shell: Shell, tmp_path: Path, tiny_pebble: Path) -> None:
    (tmp_path / "prompts.txt").write_text("prompt\tcategory\na cat\tanimals\n")
    (tmp_path / "space.yaml").write_text("depth: [1]\n")
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(b"")
    save_policy("path(times='0.8 0.5 0.2', of='x0')", "path-4")
    words = [str(tiny_pebble) if word == "MODEL" else word for word in ARGUMENTS[name]]
    refused = shell(*name.split(), *words, "--prompts", "prompts.txt", "--format", "csv")
    assert (refused.code, "prompts.txt is not csv" in refused.err) == (2, True), refused.err
    unknown = shell(*name.split(), *words, "--prompts", "prompts.txt", "--format", "xlsx")
    assert (unknown.code, "got 'xlsx'" in unknown.err) == (2, True), unknown.err
