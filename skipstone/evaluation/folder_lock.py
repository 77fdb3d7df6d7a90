"""A folder that one command at a time writes: a second one is told who does, and since when.

The lock is one of the system (flock, or locking on Windows) on a file in the folder, so that it ends with its process,
however that ends: nobody waits for a dead one.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError

LOCK = ".lock"  # the file that is locked; what is in it tells others who holds it
ATTEMPTS = 100  # each meets another command that removes the folder or the file just then
BUSY_BYTE = 1 << 30  # Windows keeps others from reading the byte that is locked


@contextmanager
def lock_folder(folder: Path, option: str = "--out") -> Iterator[None]:
    """Hold a folder for this command, and make it where it is not there; what is made and stays empty is removed.

    Args:
        folder: Where the command writes.
        option: By which the user has chosen it, for the message.

    Raises:
        OutputError: another command writes there, or it cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    handle = _acquire(folder, option)
    try:
        yield
    finally:
        _release(folder / LOCK, handle)
        with suppress(OSError):  # the first that is not empty ends it
            for path in made:
                path.rmdir()


def _acquire(folder: Path, option: str) -> int:
    """The open file that is locked."""
    path = folder / LOCK
    try:
        for _ in range(ATTEMPTS):
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the folder was removed since
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                if not _lock(handle, folder):
                    raise OutputError(_describe_busy(folder, _read_owner(handle), option))
                if _is_current(path, handle):
                    _write_owner(handle)
                    return handle
                os.close(handle)  # of a file that its holder has removed since
    except OSError as e:
        taken = "there is a file of that name" if isinstance(e, FileExistsError | NotADirectoryError) else e.strerror
        raise OutputError(f"Cannot write to {folder}: {taken}. Choose another {option}.") from None
    raise OutputError(f"Cannot write to {folder}: other commands keep removing it. Choose another {option}.")


def _release(path: Path, handle: int) -> None:
    if sys.platform == "win32":  # an open file cannot be removed there
        os.close(handle)
        with suppress(OSError):
            path.unlink()
        return
    with suppress(OSError):
        path.unlink()
    os.close(handle)


def _lock(handle: int, folder: Path) -> bool:
    """Whether the lock is ours now; on a file system that has no locks, a warning instead."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, BUSY_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as e:
        warnings.warn(
            f"{folder} cannot be locked ({e.strerror}): make sure that no other command writes there.", stacklevel=5
        )
    return True


def _is_current(path: Path, handle: int) -> bool:
    """Whether the file of that name is still the one that is open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _write_owner(handle: int) -> None:
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    owner = {"process": os.getpid(), "host": platform.node(), "since": now}
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, json.dumps(owner).encode())


def _read_owner(handle: int) -> dict[str, object]:
    """Who holds the lock; empty while it is not written."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        found = json.loads(os.read(handle, 4096))
    except (OSError, ValueError):
        return {}
    finally:
        os.close(handle)
    return found if isinstance(found, dict) else {}


def _describe_busy(folder: Path, owner: dict[str, object], option: str) -> str:
    who = "{process} on {host}, since {since}".format_map({"process": "?", "host": "?", "since": "?", **owner})
    return (
        f"Another command is writing to {folder}: process {who[:200]}. Wait until it has ended, or choose another "
        f"{option}."
    )
