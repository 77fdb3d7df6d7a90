"""A policy on disk: a small folder that can be handed on, loaded by its path wherever a spec is taken."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .. import __version__, registry
from ..engine.contracts import Policy
from ..errors import OutputError, SpecError

FILE = "policy.json"


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


def load_policy(folder: str | os.PathLike[str]) -> Policy:
    """The policy of a folder that `save_policy` wrote. Raises SpecError where it is none."""
    path = Path(folder) / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        policy: Policy = registry.parse("policy", document["policy"])
    except OSError:
        raise SpecError(f"Expected a folder with a {FILE}, as save_policy writes it, got {folder}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, SpecError):
            raise
        raise SpecError(f"{path} is damaged: it has no policy in it. Save the policy again.") from None
    return policy
