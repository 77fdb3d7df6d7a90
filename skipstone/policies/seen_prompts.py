"""The prompts that a policy was made with, by their sums, so that a benchmark can refuse to test on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ..engine.contracts import Chain, Policy
from ..errors import SpecError
from ..json_files import JsonReader
from .cascade import Cascade
from .certified import Certified
from .domains.policy import ByDomain
from .student import Student, find_student

SEEN_FILE = "seen_prompts.txt"  # of a student, or of settings by domain: a sum on each line
CALIBRATED = "prompts.jsonl"  # of a certificate: a prompt on each line


def digest_prompt(text: str) -> str:
    """SHA-256 of a prompt, without the spaces around it."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


def write_seen(prompts: Iterable[str]) -> bytes:
    """The content of `seen_prompts.txt`: the sums of all prompts, sorted."""
    return "".join(f"{one}\n" for one in sorted({digest_prompt(text) for text in prompts})).encode()


def seen_prompts(policy: Policy) -> frozenset[str]:
    """Sums of the prompts that a calibrated policy was chosen or tested on, or a student or domains were learnt from.

    Empty of a policy that was made without prompts, and of one whose folder does not say.

    Raises:
        SpecError: a file that is damaged.
    """
    if isinstance(policy, Certified) and CALIBRATED in policy.files:
        reader = JsonReader(SpecError, "Calibrate again: skipstone calibrate.")
        lines = [line for line in policy.files[CALIBRATED].splitlines() if line.strip()]
        found = [reader.parse(line, CALIBRATED) for line in lines]
        return frozenset(digest_prompt(str(one.get("prompt", ""))) for one in found if isinstance(one, dict))
    if isinstance(policy, Student | Cascade) and policy.path:
        file = Path(find_student(policy.path)) / SEEN_FILE
        mine = frozenset(file.read_text(encoding="utf-8").split()) if file.is_file() else frozenset()
        return mine | (seen_prompts(policy.own) if isinstance(policy, Cascade) else frozenset())
    if isinstance(policy, ByDomain) and policy.path:
        file = Path(policy.path).expanduser() / SEEN_FILE
        return frozenset(file.read_text(encoding="utf-8").split()) if file.is_file() else frozenset()
    if isinstance(policy, Chain) and not isinstance(policy, Certified):
        return frozenset[str]().union(*map(seen_prompts, policy.parts))
    return frozenset()
