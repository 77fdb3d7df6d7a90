"""A server of pictures as a loop sees it: over HTTP, and, where the loop has started it, as a process."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from skipstone.errors import ServingError

START_SECONDS = 300.0  # that a server may take to load its models
ASK_SECONDS = 600.0  # that a picture, or a reload, may take
POLL_SECONDS = 0.2  # between looks at audits
STOP_SECONDS = 60.0  # that a server may take to finish what it has accepted
KEY_FILE, LOG_FILE, PID_FILE, STATE_FOLDER = "admin_key.txt", "server.log", "server.pid", "audits"


@dataclass(frozen=True)
class AuditCount:
    """What the server's audit of one certificate has seen.

    Args:
        samples: Pictures that were drawn again in full by this process.
        e_value: Evidence that the promise is broken; 20 and more is an alarm.
    """

    samples: int = 0
    e_value: float = 1.0


@dataclass(frozen=True)
class Server:
    """A server at an address.

    Args:
        address: Such as http://127.0.0.1:8000.
        key: Of its operator.
        model: Name of the model on it.
    """

    address: str
    key: str
    model: str

    def describe(self) -> Mapping[str, Any]:
        """What the server says of the model. Raises ServingError."""
        return self._json("GET", f"/v1/models/{self.model}")

    def reload(self) -> Mapping[str, Any]:
        """Have models and certificates read again. Raises ServingError with the server's reason where it refuses."""
        return self._json("POST", "/admin/reload", headers={"Authorization": f"Bearer {self.key}"})

    def draw(self, prompts: Sequence[tuple[str, int]], quality: str, together: int) -> list[Mapping[str, Any]]:
        """Facts of a picture of each prompt and seed. Raises ServingError where one is not drawn.

        Args:
            prompts: Prompt and seed of each.
            quality: Name of a certificate.
            together: Requests at the same time.
        """

        def ask(one: tuple[str, int]) -> Mapping[str, Any]:
            body = {"model": self.model, "prompt": one[0], "seed": one[1], "quality": quality}
            found: Mapping[str, Any] = self._json("POST", "/v1/images/generations", json=body)["data"][0]
            return {name: value for name, value in found.items() if name != "b64_json"}

        with ThreadPoolExecutor(together) as pool:
            futures = [pool.submit(ask, one) for one in prompts]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def audits(self) -> dict[str, AuditCount]:
        """Certificate -> what its audit has seen. Raises ServingError."""
        from prometheus_client.parser import text_string_to_metric_families

        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(self._ask("GET", "/metrics").text):
            for sample in family.samples:
                if sample.name.startswith("skipstone_audit") and sample.labels.get("model") == self.model:
                    found.setdefault(sample.labels["certificate"], {})[sample.name] = sample.value
        return {
            name: AuditCount(int(one.get("skipstone_audits_total", 0)), one.get("skipstone_audit_e_value", 1.0))
            for name, one in found.items()
        }

    def withdrawn(self, promises: Mapping[str, str]) -> list[str]:
        """The certificates that an audit has withdrawn: the server promises something else in their place.

        Args:
            promises: Certificate -> its promise.
        """
        said = self.describe()["qualities"]
        return [name for name, promise in promises.items() if said.get(name, {}).get("promise") != promise]

    def _json(self, method: str, path: str, **more: Any) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._ask(method, path, **more).json()
        return found

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        import httpx

        try:
            answer = httpx.request(method, f"{self.address}{path}", timeout=ASK_SECONDS, **more)
        except httpx.HTTPError as e:
            raise ServingError(
                f"The server at {self.address} does not answer ({type(e).__name__}). Start it again, or run the loop "
                f"again, which starts its own."
            ) from None
        if answer.status_code != 200:
            raise ServingError(f"The server at {self.address} refused {method} {path}: {_message(answer)}")
        return answer


def _message(answer: Any) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"


@dataclass(eq=False)
class ServerProcess:
    """A `skipstone serve` that the loop has started, and ends.

    Args:
        folder: Of its key, its log and what its audits have seen.
        model: Name on the server.
        weights: Folder of the model.
        words: More of the command line.
    """

    folder: Path
    model: str
    weights: Path
    words: Sequence[str] = ()
    _process: subprocess.Popen[str] | None = field(default=None, init=False)

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Server:
        """Start it, and wait until it answers. Raises ServingError with the last line of its log where it ends."""
        key = secrets.token_hex(16)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / KEY_FILE
        end_left_over(self.folder)
        file.touch(mode=0o600)
        file.write_text(key + "\n", encoding="utf-8")
        places = ["--model", f"{self.model}={self.weights}", "--admin-keys", str(file)]
        places += ["--audit-state", str(self.folder / STATE_FOLDER)]
        command = [sys.executable, "-m", "skipstone", "serve", *places, *self.words]
        # In a session of its own: Ctrl-C is for the loop, which ends the server when it has cleaned up.
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "500"}, start_new_session=True
        )
        (self.folder / PID_FILE).write_text(str(self._process.pid), encoding="utf-8")
        address = self._read_address(self._process)
        return Server(address, key, self.model)

    def _read_address(self, process: subprocess.Popen[str]) -> str:
        """The address that it says; what comes later goes into the log."""
        assert process.stderr is not None
        late = threading.Timer(START_SECONDS, process.kill)
        late.start()
        log = (self.folder / LOG_FILE).open("a", encoding="utf-8")
        last = ""
        for line in process.stderr:
            log.write(line)
            last = line.strip() or last
            if found := re.search(r"at (http://\S+)", line):
                late.cancel()
                threading.Thread(target=_copy, args=(process.stderr, log), daemon=True).start()
                return found[1]
        late.cancel()
        log.close()
        process.wait()
        raise ServingError(f"The server did not start: {last or 'it said nothing'}. Its log: {self.folder / LOG_FILE}")

    def stop(self) -> None:
        """End it: what it has accepted is finished."""
        (self.folder / PID_FILE).unlink(missing_ok=True)
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def end_left_over(folder: Path) -> bool:
    """End a server of this folder that has outlived its loop (SIGKILL); whether there was one. On Linux only."""
    try:
        pid = int((folder / PID_FILE).read_text(encoding="utf-8"))
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    if str(folder / KEY_FILE).encode() not in words:  # the number belongs to another process by now
        return False
    with suppress(OSError):
        os.kill(pid, signal.SIGTERM)
    return True


def _copy(source: IO[str], log: IO[str]) -> None:
    with log:
        for line in source:
            log.write(line)
            log.flush()


def wait_for_audits(
    server: Server,
    before: Mapping[str, AuditCount],
    promises: Mapping[str, str],
    wanted: Mapping[str, int],
    seconds: float,
) -> tuple[dict[str, AuditCount], list[str]]:
    """Wait until audits have seen so many more pictures, one withdraws its certificate, or the time is over.

    Args:
        server: That audits.
        before: What its audits had seen.
        promises: Certificate -> its promise.
        wanted: Certificate -> pictures.
        seconds: To wait at most.

    Returns:
        Certificate -> what its audit has seen meanwhile, and the certificates that are withdrawn.
    """  # fmt: skip
    end = time.monotonic() + seconds
    while True:
        if withdrawn := server.withdrawn(promises):
            time.sleep(POLL_SECONDS)  # its numbers follow
        now = server.audits()
        more = {name: now.get(name, AuditCount()).samples - before.get(name, AuditCount()).samples for name in promises}
        enough = all(more[name] >= count for name, count in wanted.items())
        if withdrawn or enough or time.monotonic() > end:
            return {name: AuditCount(more[name], now[name].e_value if more[name] else 1.0) for name in more}, withdrawn
        time.sleep(POLL_SECONDS)
