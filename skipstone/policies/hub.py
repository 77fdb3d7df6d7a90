"""Pushes policies to the Hugging Face hub; they are read from there wherever a policy's folder is named."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from .. import registry
from ..engine.contracts import Policy
from ..errors import OutputError, SpecError
from ..settings import shorten
from .certified import FILE, Certified
from .domains.policy import ByDomain
from .from_file import files_of
from .hub_files import HUB_ID, without_bars
from .storage import save_policy

KEPT_BACK = ("drawn/*", "audit.jsonl", ".*", "*.part")  # of a folder: what `tune` has drawn, what `audit` has seen
CARD = "---\nlibrary_name: skipstone\ntags: [skipstone, diffusers]\n---\n"


def push_to_hub(
    policy: Policy | str | os.PathLike[str], repo: str, *, private: bool = True, revision: str | None = None
) -> str:
    """Push a policy, or a folder that `tune`, `calibrate` or `save_policy` wrote, to the Hugging Face hub.

        skipstone.push_to_hub("error_control(tol=0.01)", "me/careful")
        with skipstone.adapt(pipe, "me/careful"): ...

    The folder of a certificate holds the prompts of the calibration. You must be logged in: `hf auth login`.

    Args:
        policy: A policy, its spec, or a folder. In a folder with several policies each is read as me/careful/folder.
        repo: org/name; made where it is not there.
        private: Whether only its owner may read a repository that is made.
        revision: Branch to push to; None is the main branch.

    Returns:
        Its address.

    Raises:
        SpecError: a policy that cannot be understood, or that is made of files which nobody else has.
        OutputError: the hub does not take it.
    """
    if not HUB_ID.fullmatch(repo):
        raise OutputError(f"Expected the name of a repository, org/name, got {shorten(repo)}.")
    if not isinstance(policy, Policy | str | os.PathLike):
        raise SpecError(f"Expected a policy, its spec or its folder, got {type(policy).__name__}.")
    with tempfile.TemporaryDirectory() as staging:
        folder = Path(staging) / "policy"
        _stage(policy, repo, folder)
        return _upload(folder, repo, private, revision)


def _stage(policy: Policy | str | os.PathLike[str], repo: str, folder: Path) -> None:
    """Write what is to be pushed into a folder that is not there yet."""
    is_folder = not isinstance(policy, Policy) and os.path.isdir(policy)
    if is_folder:
        if not any(Path(policy).glob(f"**/{FILE}")):  # type: ignore[arg-type]  # a path
            raise SpecError(f"Expected a folder with a {FILE}, or with folders that have one, got {policy}.")
        shutil.copytree(policy, folder, ignore=shutil.ignore_patterns("drawn"))  # type: ignore[arg-type]
    else:
        made: Policy = policy if isinstance(policy, Policy) else registry.parse("policy", os.fspath(policy))
        _check_portable(made)
        named = policy if isinstance(policy, str) else made  # the name of a preset brings its fallback
        made.save_pretrained(folder) if isinstance(made, Certified) else save_policy(named, folder)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else _describe(policy, repo, is_folder)
    card.write_text(text if text.startswith("---") else CARD + text, encoding="utf-8")


def _describe(policy: Any, repo: str, is_folder: bool) -> str:
    """The card of a policy that has none."""
    spec = "" if is_folder else f"`{registry.spell(policy) if isinstance(policy, Policy) else policy}`\n\n"
    return (
        f"# {repo}\n\n{spec}A policy of Skipstone, which decides for each sample which calls of a diffusion model's "
        f'network to make.\n\n```python\nwith skipstone.adapt(pipe, "{repo}") as adapted:\n    '
        f'image = pipe("a red apple on a blue table").images[0]\nprint(adapted.last.summary())\n```\n'
    )


def _check_portable(policy: Policy) -> None:
    """Raise SpecError for a policy that is more than its settings: Python files, trained agents."""
    from .agent.policy import Agent, shipped_agents

    parts = getattr(policy, "parts", (policy,))
    files = [str(file) for file in files_of(policy)]
    files += [part.path for part in parts if isinstance(part, Agent) and part.path not in ("", *shipped_agents())]
    files += [part.path for part in parts if isinstance(part, ByDomain) and part.path]
    if files:
        raise SpecError(
            f"This policy is made of {' and '.join(files)}, and only settings are pushed. Push the file as what it is, "
            f"with `hf upload org/name {files[0]}`, and name it where it is then downloaded to."
        )


def _upload(folder: Path, repo: str, private: bool, revision: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    api = HfApi()
    try:
        with without_bars():
            address = api.create_repo(repo, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo, branch=revision, exist_ok=True)
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                ignore_patterns=list(KEPT_BACK),
                commit_message="Push a policy of Skipstone",
            )
    except (hub.LocalTokenNotFoundError, hub.HfHubHTTPError) as e:
        status = getattr(getattr(e, "response", None), "status_code", None)
        why = "is not yours to write to, or nobody is logged in: `hf auth login`" if status in (401, 403, None) else ""
        raise OutputError(f"{repo} {why or f'was refused by the hub ({status})'}.") from e
    except hub.HFValidationError:
        raise OutputError(f"Expected the name of a repository, org/name, got {shorten(repo)}.") from None
    except Exception as e:  # the client lets errors of its own client through
        raise OutputError(f"{repo} cannot be pushed: no answer from the Hugging Face hub ({type(e).__name__}).") from e
    return str(address)
