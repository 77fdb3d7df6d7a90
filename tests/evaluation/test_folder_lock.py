"""Two commands, one folder: one writes, the other is told who does; no lock outlives its process."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from skipstone.cli.files import write_atomically
from skipstone.errors import OutputError
from skipstone.evaluation.folder_lock import LOCK, lock_folder

HOLD = """
import sys
from pathlib import Path
from skipstone.evaluation.folder_lock import lock_folder
try:
    with lock_folder(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
# Each adds 1 to a number that it reads and writes in two steps: without the lock, additions get lost.
COUNT = """
import sys, time
from pathlib import Path
from skipstone.errors import OutputError
from skipstone.evaluation.folder_lock import lock_folder
folder, number = Path(sys.argv[1]), Path(sys.argv[2])
left = 150
while left:
    try:
        with lock_folder(folder):
            found = int(number.read_text())
            time.sleep(0.0002)
            number.write_text(str(found + 1))
            left -= 1
    except OutputError:
        pass
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_command_is_told_who_writes_there(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    other = hold(folder)
    words = (
        rf"process {other.pid} on {platform.node()}, since \d{{4}}-.*Wait until it has ended, or choose another --out"
    )
    with pytest.raises(OutputError, match=words), lock_folder(folder):
        pytest.fail("both hold it")
    other.communicate("")
    with lock_folder(folder):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()
        with pytest.raises(OutputError, match=f"process {os.getpid()} "), lock_folder(folder):
            pytest.fail("it is held twice in one process")
    assert list(tmp_path.iterdir()) == []  # folders that were made and stayed empty


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_lock_outlives_its_process(how: signal.Signals, tmp_path: Path) -> None:
    other = hold(tmp_path)
    other.send_signal(how)
    out, _ = other.communicate()
    assert out == ("stopped\n" if how == signal.SIGINT else "")
    assert (tmp_path / LOCK).exists() == (how != signal.SIGINT)
    with lock_folder(tmp_path):
        (tmp_path / "made").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_of_many_commands_one_at_a_time_writes(tmp_path: Path) -> None:
    """The folder is made and removed all the time: the lock of a removed file must not count."""
    number = tmp_path / "number"
    number.write_text("0")
    commands = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path / "out"), str(number)]) for _ in range(3)]
    assert [command.wait() for command in commands] == [0, 0, 0]
    assert number.read_text() == "450"
    assert not (tmp_path / "out" / LOCK).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"process": {"a": 1}}'])
def test_what_a_dead_process_has_left_does_not_matter(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(content)
    with lock_folder(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_where_nothing_can_be_written_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(OutputError, match="there is a file of that name"), lock_folder(folder):
            pytest.fail("it is no folder")


def test_a_file_that_was_written_meanwhile_is_kept(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    second.write_bytes(b"theirs")
    with pytest.raises(OutputError, match=r"b\.png was written by another command meanwhile"):
        write_atomically({first: b"mine", second: b"mine"}, force=False)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("b.png", b"theirs")]
    write_atomically({first: b"mine", second: b"mine"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.png": b"mine", "b.png": b"mine"}
