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
from ..settings import shorten
from .certificate_files import READER, read_saved_policy
from .certified import FILE as FILE
from .certified import Certified
from .domains.policy import ByDomain
from .hub_files import CERTIFICATE_FILES, fetch_policy, is_on_hub


def save_policy(policy: Policy | str, folder: str | os.PathLike[str], **notes: Any) -> Path:
    """Write a policy's spec, and what its maker notes beside it, into a folder; returns the file.

    Of a preset, its name and not the policy that it stands for, the fallback is written, too.

    Raises:
        SpecError: a spec that cannot be understood.
        OutputError: the folder cannot be written.
    """
    fallback = registry.find_fallback("policy", policy.strip()) if isinstance(policy, str) else ""
    policy = registry.parse("policy", policy) if isinstance(policy, str) else policy
    target = Path(folder) / FILE
    part = target.with_name(f".{FILE}.part")
    try:
        plain = json.loads(json.dumps(notes), parse_constant=str)  # JSON has no infinities
        saved = {"policy": registry.spell(policy), "skipstone": __version__, "notes": plain}
        text = json.dumps(saved | ({"fallback": fallback} if fallback else {}), indent=1)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, target)
    except (OSError, TypeError, ValueError) as e:
        raise OutputError(f"Cannot save the policy in {folder}: {e}.") from None
    return target


def read_policy(
    folder: str | os.PathLike[str], force: bool = False, allow_sampler: bool = False, revision: str | None = None
) -> Policy:
    """The policy of a folder, not held against any model; `skipstone.load_policy` does that.

    Args:
        folder: Where it is: a path, or the name of a repository on the Hugging Face hub where there is no such path.
        force: Let a calibrated policy run on what its certificate was not made for.
        allow_sampler: Let a certificate that found a sampler to be best replace the pipeline's scheduler and steps.
        revision: Branch, tag or commit of a repository.

    Raises:
        SpecError: there is none, or it is damaged.
    """
    if is_on_hub(folder):
        folder = fetch_policy(str(folder), revision)
    path = str(Path(folder) / FILE)
    if not is_policy_folder(folder):
        raise SpecError(f"Expected a folder with a {FILE}, as save_policy writes it, got {folder}.{_hint(str(folder))}")
    try:
        saved = read_saved_policy(path)
        policy: Policy = registry.parse("policy", saved.policy)
    except RecursionError:
        raise SpecError(f"{path}: expected the spec of a policy, got one that names its own folder.") from None
    if saved.domains:
        return ByDomain(str(folder))
    if saved.certificate is None:
        return policy
    files = {name: data for name in CERTIFICATE_FILES if (data := _read_beside(Path(folder) / name)) is not None}
    certified, advice = Certified.from_certificate(saved.certificate, allow_sampler, forced=force, files=files)
    if advice:
        warnings.warn(advice, GuestWarning, stacklevel=2)
    return certified


def read_fallback(folder: str | os.PathLike[str], revision: str | None = None) -> Policy | None:
    """What a folder's policy is replaced by where it cannot take a pipeline's loop over; None where nothing was saved.

    Args:
        folder: As of `read_policy`, which reads it first.
        revision: Branch, tag or commit of a repository.

    Raises:
        SpecError: there is none, or it is damaged.
    """
    if is_on_hub(folder):
        folder = fetch_policy(str(folder), revision)
    saved = read_saved_policy(str(Path(folder) / FILE))
    fallback: Policy | None = registry.parse("policy", saved.fallback) if saved.fallback else None
    return fallback


def _hint(name: str) -> str:
    """What to type where a folder was expected and this is the name of a policy; else nothing."""
    known = (*registry.names("policy"), *registry.list_presets("policy"))
    return f" A policy is made of its name by skipstone.policy({name!r})." if name in known else ""


def is_policy_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a policy is saved there, or may be on the hub; False of what is neither a path nor org/name."""
    return os.path.isfile(Path(folder) / FILE) or is_on_hub(folder)  # that of pathlib raises where a name is too long


def _read_beside(path: Path) -> bytes | None:
    """A file that belongs to a certificate, where it is there."""
    return READER.read_bytes(path) if path.is_file() else None


def auto(certificate: str = "", allow_sampler: bool = False) -> Policy:
    """What a certificate says is fastest: a policy, a sampler where that is allowed, or no change at all.

    Args:
        certificate: Folder of `skipstone calibrate`.
        allow_sampler: Let it replace the pipeline's scheduler and steps; otherwise it only says so.

    Raises:
        SpecError: no certificate.
    """
    if not certificate or not is_policy_folder(certificate):
        got = f"there is no certificate in {shorten(certificate)}" if certificate else "none was named"
        raise SpecError(
            f"auto chooses from a certificate, and {got}. Make one: skipstone calibrate --samplers --prompts FILE "
            f"--target 'psnr >= 30 @ 90%' --out DIR; then say 'auto(certificate=\"DIR\")'."
        )
    policy = read_policy(certificate, allow_sampler=allow_sampler)
    if not isinstance(policy, Certified):
        raise SpecError(f"{certificate} holds a policy without a certificate: make one with skipstone calibrate.")
    return policy
