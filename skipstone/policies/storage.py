"""A policy on disk: a small folder that can be handed on, loaded by its path wherever a spec is taken."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from .. import __version__, registry
from ..engine.contracts import Policy
from ..errors import GuestWarning, OutputError, SpecError
from .certified import FILE as FILE
from .certified import Certificate, Certified

CERTIFICATE_FILES = ("README.md", "front.png", "prompts.jsonl")  # what belongs to a certificate


def save_policy(policy: Policy | str, folder: str | os.PathLike[str], **notes: Any) -> Path:
    """Write a policy's spec, and what its maker notes beside it, into a folder; returns the file.

    Raises:
        SpecError: a spec that cannot be understood.
        OutputError: the folder cannot be written.
    """
    policy = registry.parse("policy", policy) if isinstance(policy, str) else policy
    document = {"policy": registry.spell(policy), "skipstone": __version__, "notes": notes}
    target = Path(folder) / FILE
    part = target.with_name(f".{FILE}.part")
    try:
        text = json.dumps(document, indent=1)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, target)
    except (OSError, TypeError, ValueError) as e:
        raise OutputError(f"Cannot save the policy in {folder}: {e}.") from None
    return target


def read_policy(folder: str | os.PathLike[str], force: bool = False, allow_sampler: bool = False) -> Policy:
    """The policy of a folder, not held against any model; `skipstone.load_policy` does that.

    Args:
        folder: Where it is.
        force: Let a calibrated policy run on what its certificate was not made for.
        allow_sampler: Let a certificate that found a sampler to be best replace the pipeline's scheduler and steps.

    Raises:
        SpecError: there is none, or it is damaged.
    """
    path = Path(folder) / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        policy: Policy = registry.parse("policy", document["policy"])
        if "certificate" not in document:
            return policy
        certificate = Certificate.from_dict(document["certificate"])
        files = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.name in CERTIFICATE_FILES and p.is_file()}
        certified, advice = Certified.from_certificate(certificate, allow_sampler, forced=force, files=files)
    except OSError:
        raise SpecError(f"Expected a folder with a {FILE}, as save_policy writes it, got {folder}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        if isinstance(e, SpecError):
            raise
        raise SpecError(f"{path} is damaged: it has no policy in it. Save the policy again.") from None
    if advice:
        warnings.warn(advice, GuestWarning, stacklevel=2)
    return certified


def auto(certificate: str = "", allow_sampler: bool = False) -> Policy:
    """What a certificate says is fastest: a policy, a sampler where that is allowed, or no change at all.

    Args:
        certificate: Folder of `skipstone calibrate`.
        allow_sampler: Let it replace the pipeline's scheduler and steps; otherwise it only says so.

    Raises:
        SpecError: no certificate.
    """
    if not certificate or not (Path(certificate) / FILE).is_file():
        got = f"there is no certificate in {certificate}" if certificate else "none was named"
        raise SpecError(
            f"auto chooses from a certificate, and {got}. Make one: skipstone calibrate --samplers --prompts FILE "
            f"--target 'psnr >= 30 @ 90%' --out DIR; then say 'auto(certificate=\"DIR\")'."
        )
    policy = read_policy(certificate, allow_sampler=allow_sampler)
    if not isinstance(policy, Certified):
        raise SpecError(f"{certificate} holds a policy without a certificate: make one with skipstone calibrate.")
    return policy
