"""A command whose --out another one writes to is told so before anything is drawn; the same one goes on later."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import all_options
from outcome import Shell

from skipstone.cli.files import check_targets
from skipstone.evaluation.folder_lock import LOCK, lock_folder
from skipstone.policies.storage import save_policy

TOY = ("environment=toy", "learner=search", "held_out=16", "tracking=none", "--minutes", "0.001")
ARGUMENTS: dict[str, tuple[str, ...]] = {  # all but --out
    "calibrate": ("--model", "MODEL", "--prompts", "prompts.txt", "--target", "psnr >= 20 @ 60%"),
    "tune": ("--model", "MODEL", "--prompts", "prompts.txt", "--limit", "2", "--fine", "16", "--calls", "4"),
    "compare": ("a cat", "--model", "MODEL", "--steps", "3", "-p", "stride"),
    "bench": (
        "--model", "MODEL", "--prompts", "prompts.txt", "--limit", "2", "--steps", "4", "--budget", "3", "--peers",
        "none", "--converged", "fixed @ ddim / own / 5", "--converged", "fixed @ unipc / own / 4",
    ),
    "demo": (),
    "prefer": ("ours", "theirs", "--prompts", "named.csv", "--dry-run", "-j", "m@http://localhost:1/v1"),
    "train agent": TOY,
    "train log": ("--model", "MODEL", "--prompts", "prompts.txt", "--guide", "path-4", "--fine", "100"),
    "distill": ("--model", "MODEL", "--prompts", "prompts.txt", "--steps", "2", "--train-steps", "1"),
    "search": ("--model", "MODEL", "--space", "space.yaml", "--prompts", "prompts.txt"),
    "evaluate agent": ("pebble", "--model", "MODEL", "--prompts", "prompts.txt"),
}  # fmt: skip
ELSEWHERE = {"generate": "writes files whose names it knows, and keeps those that appear meanwhile"}


def test_every_command_that_writes_a_folder_is_here() -> None:
    assert {*ARGUMENTS, *ELSEWHERE} == {name for name, options in all_options().items() if "out" in options}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_folder_in_use_is_refused_before_anything_is_drawn(
    name: str, shell: Shell, tmp_path: Path, tiny_pebble: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"a cat in {word}\n" for word in "abcdefghijkl"))
    (tmp_path / "space.yaml").write_text("depth: [1]\n")
    (tmp_path / "named.csv").write_text("name,prompt\na,a cat\n")
    for folder, content in (("ours", b"\x89PNG"), ("theirs", b"\x89PNG")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(content)
    save_policy("path(times='0.8 0.5 0.2', of='x0')", "path-4")
    out = "out.npz" if name == "train log" else "out"
    held = tmp_path / (".out.npz.parts" if name == "train log" else "out")
    words = [str(tiny_pebble) if word == "MODEL" else word for word in ARGUMENTS[name]]
    with lock_folder(held):
        refused = shell(*name.split(), *words, "--out", out)
        assert refused.code == 2
        assert "Another command is writing to " in refused.err
        assert "Wait until it has ended, or choose another --out." in refused.err
        assert [path.name for path in held.iterdir()] == [LOCK]
    check_targets([held / "anything"], force=False)
    assert not held.exists()
