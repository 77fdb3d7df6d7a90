"""What audits have seen, in a file beside each certificate, so that it outlives the process."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..calibration.betting import GAMBLERS
from ..calibration.sequential import RunningAudit
from ..calibration.target import Target
from ..errors import SkipstoneError, SpecError
from ..evaluation.files import write_file
from ..json_files import JsonReader
from ..numerics.nonfinite import read_nonfinite, spell_nonfinite
from .fingerprint import CERTIFICATES
from .models import ServedModel
from .settings import Setting

log = logging.getLogger("skipstone.serving")
STATE_FILE = "served_audit.json"
FORMAT = 1
LOCK_SECONDS = 10.0  # for which another process is waited for
MAX_BYTES = 100_000
_READER = JsonReader(SpecError, "Remove the file, and the audit begins anew.", max_bytes=MAX_BYTES)


@dataclass(frozen=True)
class StateDocument:
    """The file.

    Args:
        format: 1.
        certificate: SHA-256 of the certificate and of the weights; a file of others is not read.
        samples: Audited so far.
        logs: Logarithm of each gambler's capital.
        peak: Logarithm of the most that the mean capital was.
    """

    format: int
    certificate: str
    samples: int
    logs: Sequence[float | str]
    peak: float


@dataclass(eq=False)
class AuditStates:
    """The audits of all certificates; processes that share a folder share them.

    Args:
        false_alarm: Of each certificate, in (0, 0.5).
        folder: Where the files are; None puts each beside its certificate.
    """

    false_alarm: float = 0.05
    folder: Path | None = None
    _memory: dict[tuple[str, str], tuple[str, RunningAudit]] = field(default_factory=dict, init=False)
    _unwritten: set[Path] = field(default_factory=set, init=False)

    def read(self, model: ServedModel, name: str, setting: Setting) -> RunningAudit:
        """The audit of a certificate so far."""
        return self._read(model, name, setting, self._file(model, name))

    def add(self, model: ServedModel, name: str, setting: Setting, value: float) -> RunningAudit:
        """The audit after one more value of the certificate's metric, which is written."""
        file = self._file(model, name)
        with self._lock(file):
            audit = self._read(model, name, setting, file).update([value])
            self._memory[model.name, name] = (_key(model, setting), audit)
            if file is not None:
                self._write(file, setting, _key(model, setting), audit)
        return audit

    def _file(self, model: ServedModel, name: str) -> Path | None:
        if self.folder is not None:
            return self.folder / model.name / name / STATE_FILE
        inside = model.source.folder
        return None if inside is None else inside / CERTIFICATES / name / STATE_FILE

    def _read(self, model: ServedModel, name: str, setting: Setting, file: Path | None) -> RunningAudit:
        key, target = _key(model, setting), Target.parse(setting.target)
        known, audit = self._memory.get((model.name, name), ("", RunningAudit(target, self.false_alarm)))
        if known != key:
            audit = RunningAudit(target, self.false_alarm)
        if file is None or file in self._unwritten or not file.is_file():
            return audit
        try:
            found: StateDocument = _READER.convert(StateDocument, _READER.read(file), str(file))
            if found.format != FORMAT or len(found.logs) != GAMBLERS:
                raise SpecError(f"{file}: expected format {FORMAT} and {GAMBLERS} logarithms.")
            if found.certificate != key:
                return audit
            logs = tuple(float(read_nonfinite(one)) for one in found.logs)
            return RunningAudit(target, self.false_alarm, found.samples, logs, found.peak)
        except (SpecError, ValueError) as error:
            log.warning("the audit of %s begins anew: %s", name, error)
            return audit

    def _write(self, file: Path, setting: Setting, key: str, audit: RunningAudit) -> None:
        logs = [spell_nonfinite(one) for one in audit.logs]
        content: dict[str, Any] = vars(StateDocument(FORMAT, key, audit.n, logs, audit.peak_log))
        try:
            write_file(file, (json.dumps(content, indent=1) + "\n").encode())
        except SkipstoneError as error:
            if file not in self._unwritten:
                log.warning("audits of %s are forgotten when the process ends: %s", setting.certificate, error)
            self._unwritten.add(file)

    def _lock(self, file: Path | None) -> AbstractContextManager[Any]:
        """A lock between processes; none where the folder cannot be written, which is said when it is."""
        if file is None or file in self._unwritten:
            return nullcontext()
        from filelock import FileLock

        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            return FileLock(file.with_suffix(".lock"), timeout=LOCK_SECONDS).acquire()
        except (OSError, TimeoutError):
            return nullcontext()


def _key(model: ServedModel, setting: Setting) -> str:
    """Of a certificate with the weights that it is for."""
    facts = (setting.digest, setting.certificate, setting.target, model.fingerprint)
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
