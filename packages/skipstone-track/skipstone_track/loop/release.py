"""The steps `register` and `deploy`: weights and certificates that fit each other, as one version."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from skipstone.errors import OutputError, ServingError, SkipstoneError
from skipstone.serving.fingerprint import CERTIFICATES, weights_fingerprint
from skipstone.serving.loading import ModelLoader

from ..connection import TrackerError
from ..manifest import digest, manifest
from ..registry import SCHEME, Version, fetch, find, promote, register
from .pending import add_pending
from .records import KEY, sum_of
from .round import Round, StepFailed, StepResult
from .server import Server
from .settings import LoopSettings

RELEASES = "releases"  # folder of weights with their certificates


def register_inputs(at: Round) -> Mapping[str, str]:
    """What `register` depends on."""
    return {
        "settings": sum_of(asdict(at.settings.register)),
        "calibrate": at.output("calibrate"),
        "verify": at.records["verify"].key,
        "weights": at.weights,
    }


def register_release(at: Round, folder: Path) -> StepResult:
    """Make a folder of weights and certificates, load it as the server will, and register it.

    Raises:
        StepFailed: certificates that are not for these weights.
    """
    release = release_folder(at)
    make_release(at, release)
    qualities = at.settings.calibrate.qualities
    lines = [f"{len(qualities)} certificates fit the weights {at.weights[:12]}"]
    lineage = {
        "fingerprint.weights": at.weights,
        "prompts.calibration": at.records["draw"].details["sha256"]["calibrate"],
        "prompts.evaluation": at.records["draw"].details["sha256"]["held_out"],
        "loop": at.settings.name,
        "round": str(at.number),
        **{f"quality.{name}": target for name, target in qualities.items()},
    }
    details = {"digest": digest(manifest(release)), "release": str(release), "lineage": lineage, "version": 0}
    try:
        version = publish(at.settings, release, lineage)
    except TrackerError as e:
        add_pending(at.place, release, lineage)
        lines.append(f"the registry is not reached, and is told later: {e}")
        return StepResult(lines, {}, details)
    except OutputError as e:
        raise StepFailed(f"Not promoted: {e}") from None
    alias = at.settings.register.alias
    lines.append(f"{SCHEME}{version.name}/{version.number} is @{alias}, sha256 {version.digest[:12]}")
    return StepResult(lines, {"version": float(version.number)}, {**details, "version": version.number})


def release_folder(at: Round) -> Path:
    """Where this round's weights and certificates are, together."""
    return at.place / RELEASES / f"{at.weights[:KEY]}-{at.output('calibrate')[:KEY]}"


def make_release(at: Round, release: Path) -> None:
    """The model's files with this round's certificates. Raises StepFailed where they do not fit."""
    shutil.rmtree(release, ignore_errors=True)
    shutil.copytree(at.model, release, ignore=shutil.ignore_patterns(CERTIFICATES, "__pycache__", ".*"))
    for name in at.settings.calibrate.qualities:
        shutil.copytree(at.folders["calibrate"] / name, release / CERTIFICATES / name)
    if weights_fingerprint(release) != at.weights:
        raise StepFailed(f"{at.model} was changed while the round ran: run the loop again.")
    check_release(release)


def check_release(release: Path) -> None:
    """Load weights and certificates as the server does. Raises StepFailed where one is not for these weights."""
    try:
        ModelLoader({"release": str(release)}).load_all()
    except SkipstoneError as e:
        raise StepFailed(f"Not registered: {e}") from None


def publish(settings: LoopSettings, release: Path, lineage: Mapping[str, str]) -> Version:
    """Register a release, and move the alias to it once its files were fetched back unchanged. Raises OutputError."""
    name, uri = settings.registered_name, settings.tracker
    made = register(release, name, None, uri, lineage)
    return promote(name, str(made.number), settings.register.alias, uri, registered_cache(settings))


def registered_cache(settings: LoopSettings) -> Path:
    """Folder of downloads from the registry."""
    return settings.place / "registered"


def find_champion(settings: LoopSettings) -> Version | None:
    """The version that the alias names; None where there is none, or the registry cannot be reached."""
    try:
        return find(f"{SCHEME}{settings.registered_name}@{settings.register.alias}", settings.tracker)
    except SkipstoneError:
        return None


def deploy(at: Round, folder: Path) -> StepResult:
    """Put the release in its place, and have the server read it: the version of the alias, or what is not told yet."""
    details = at.records["register"].details
    release, champion = Path(str(details["release"])), find_champion(at.settings)
    lines = []
    if not release.is_dir() or digest(manifest(release)) != details["digest"]:
        lines.append(f"{release} was changed or removed, and is made again")
        make_release(at, release)
    if champion is not None and champion.digest != details["digest"] and details["version"]:
        release = fetch(
            f"{SCHEME}{champion.name}/{champion.number}", at.settings.tracker, registered_cache(at.settings)
        )
        lines.append(f"@{at.settings.register.alias} was moved to version {champion.number}, which is deployed")
    found = digest(manifest(release))
    new = at.server is None or (at.deployed, at.released) != (at.weights, found)
    if new:
        at.server, said = put_in_place(at, release)
        lines.append(said)
    assert at.server is not None
    facts = at.server.describe()
    at.deployed, at.released = str(facts["fingerprint"]), found
    served = ", ".join(f"{name} ({one['target']})" for name, one in facts["qualities"].items())
    lines.append(f"{at.server.address} {'draws' if new else 'draws as before'} by {served or 'no certificate'}")
    return StepResult(lines, {}, {"address": at.server.address, "fingerprint": at.deployed, "new": new})


def put_in_place(at: Round, release: Path) -> tuple[Server, str]:
    """The server after it has read a release, and what was done. Raises ServingError, and leaves what was there."""
    replaced = replace_release(at.model, release)
    try:
        server, said = _read_again(at)
    except ServingError:
        replaced.put_back()
        raise
    replaced.forget()
    return server, said


def _read_again(at: Round) -> tuple[Server, str]:
    deploy = at.settings.deploy
    if at.server is None and deploy.address:
        at.server = Server(deploy.address.rstrip("/"), read_key(deploy.admin_key), at.settings.name)
    if at.server is None:
        server = at.process.start()
        return server, f"a server was started at {server.address}"
    done = at.server.reload()
    new = "new weights" if done["replaced"] else "the weights stayed in memory"
    return at.server, f"the server has read it again in {done['seconds']:.1f} s while it drew ({new})"


def read_key(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").split()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        raise ServingError(f"deploy.admin_key: {file} has no key: expected the file of --admin-keys.") from None


class Replaced:
    """What was replaced, until the server has read what is new.

    Args:
        moved: Where each thing was -> where it is now; None of what was not there.
    """

    def __init__(self, moved: Mapping[Path, Path | None]) -> None:
        self.moved = moved

    def put_back(self) -> None:
        """As it was."""
        for place, old in self.moved.items():
            shutil.rmtree(place, ignore_errors=True)
            if old is not None:
                os.rename(old, place)

    def forget(self) -> None:
        """Remove what was replaced."""
        for old in self.moved.values():
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)


def replace_release(model: Path, release: Path) -> Replaced:
    """Put a release's certificates into the model's folder, and its weights where they are others.

    Raises:
        OutputError: a folder that cannot be written.
    """
    inside = model if weights_fingerprint(model) != weights_fingerprint(release) else model / CERTIFICATES
    source = release if inside == model else release / CERTIFICATES
    # Beside the model's folder, not in it: what is in it is read as part of the model.
    new, old = (model.with_name(f".{model.name}{end}") for end in (".new", ".old"))
    try:
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source, new)
        was_there = inside.exists()
        if was_there:
            os.rename(inside, old)
        os.rename(new, inside)
    except OSError as e:
        raise OutputError(f"{inside} cannot be replaced: {e.strerror or e}.") from None
    return Replaced({inside: old if was_there else None})
