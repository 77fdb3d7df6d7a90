"""Files on the Hugging Face hub, and policies among them: where they lie in its cache."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import SpecError
from ..settings import shorten
from .certified import FILE
from .domains.classifier import CLASSIFIER_FILE

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # of a repository: org/name
DOMAIN_FILES = (CLASSIFIER_FILE, "seen_prompts.txt")  # what belongs to settings by domain
CERTIFICATE_FILES = ("README.md", "front.png", "prompts.jsonl")  # what belongs to a certificate


class NotFetched(Exception):
    """A file that the hub does not give. Its text goes on after the name of the repository."""


def fetch_file(repo: str, name: str, kind: str, revision: str | None = None) -> Path:
    """A file of a repository on the hub, from the cache where nothing newer can be had.

    Args:
        repo: org/name.
        name: Path of the file in there.
        kind: Of what the repository should hold, for messages: "model", "policy".
        revision: Branch, tag or commit; None is the newest of the main branch.

    Raises:
        NotFetched: it is not there, or not to be had.
    """
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    try:
        with without_bars():
            return Path(hf_hub_download(repo, name, revision=revision))
    except hub.GatedRepoError:
        why = f"is gated: accept its terms at https://huggingface.co/{repo}, then log in with `hf auth login`"
    except hub.RepositoryNotFoundError:
        why = f"is neither a folder here nor a public {kind} on the Hugging Face hub"
        why += "; a private one needs `hf auth login`" if kind == "policy" else ""
    except hub.RevisionNotFoundError:
        why = f"has no revision {shorten(revision)}"
    except hub.LocalEntryNotFoundError:
        why = "is no folder here and is not in the cache, and the Hugging Face hub cannot be reached"
    except hub.EntryNotFoundError:
        why = f"has no {name}"
    except hub.HFValidationError:
        why = "is neither a folder here nor a name that the Hugging Face hub has"
    except OSError:  # of the client, when the hub answers with trouble
        why = "is no folder here and is not in the cache, and the Hugging Face hub cannot be reached"
    raise NotFetched(why)


def is_on_hub(name: str | os.PathLike[str]) -> bool:
    """Whether this can only be a policy on the hub, org/name or org/name/folder, as no file here has its name."""
    return isinstance(name, str) and bool(HUB_ID.match(name)) and _split(name) is not None and not os.path.exists(name)


def fetch_policy(name: str, revision: str | None = None) -> Path:
    """The folder, in the hub's cache, of a policy that `is_on_hub`.

    Raises:
        SpecError: there is none, or it cannot be had.
    """
    repo, folder = _split(name) or (name, "")
    try:
        path = fetch_file(repo, folder + FILE, "policy", revision)
    except NotFetched as e:
        raise SpecError(f"{name} {e}. Expected a folder with a {FILE}, here or on the hub: org/name.") from None
    for beside in (*CERTIFICATE_FILES, *DOMAIN_FILES):
        with contextlib.suppress(NotFetched):
            fetch_file(repo, folder + beside, "policy", revision or path.parts[path.parts.index("snapshots") + 1])
    return path.parent


def _split(name: str) -> tuple[str, str] | None:
    """The repository of 'org/name/folder', and the folder with a slash behind it; None of what is no such name."""
    parts = name.split("/")
    plain = len(parts) >= 2 and all(re.fullmatch(r"[\w.-]+", part) and set(part) != {"."} for part in parts)
    return ("/".join(parts[:2]), "".join(f"{part}/" for part in parts[2:])) if plain else None


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars inside: the files are small."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
