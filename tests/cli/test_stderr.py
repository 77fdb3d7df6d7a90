"""What other libraries say does not open our commands and scripts, and their settings stay the user's."""

from __future__ import annotations

import subprocess
import sys

import diffusers
import pytest
import transformers

from skipstone.testing.backbones.loading import quiet_libraries

LOGS = (diffusers.utils.logging, transformers.utils.logging)
SCRIPT = """
import skipstone, skipstone_pebble
pebble = skipstone.Pebble.load()
pipe = skipstone_pebble.load_pipeline()
pipe.set_progress_bar_config(disable=True)
with skipstone.adapt(pipe, "fixed"):
    pipe("a cat", num_inference_steps=2)
"""
COMMAND = """
import sys
sys.argv[1:] = ["generate", "a cat", "--steps", "2", "--as-guest", "--policy", "fixed", "--out", sys.argv[1] + "/a.png"]
from skipstone.cli import main
main()
"""


def test_a_script_and_a_command_write_nothing_to_stderr(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + COMMAND, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "2 of 2 calls" in done.stdout


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("level", [10, 20, 50])
def test_settings_of_other_libraries_are_restored(bars: bool, level: int) -> None:
    before = [(log.get_verbosity(), log._tqdm_active) for log in LOGS]
    try:
        for log in LOGS:
            log.set_verbosity(level)
            (log.enable_progress_bar if bars else log.disable_progress_bar)()
        with quiet_libraries():
            assert [log.get_verbosity() for log in LOGS] == [40, 40]
        assert [(log.get_verbosity(), log._tqdm_active) for log in LOGS] == [(level, bars)] * 2
    finally:
        for log, (was, shown) in zip(LOGS, before, strict=True):
            log.set_verbosity(was)
            (log.enable_progress_bar if shown else log.disable_progress_bar)()
