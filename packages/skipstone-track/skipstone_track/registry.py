"""MLflow's registry of models: what is registered, which version an alias names, and files that are what they were."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipstone.errors import OutputError, SpecError

from .connection import connect, parse_uri
from .manifest import SUMS_FILE, differences, digest, manifest
from .readers import read_folder
from .tracker import DIGEST, MlflowTracker

FILES, KIND = "skipstone.files", "skipstone.kind"  # tags of a version: its manifest, what it is
REFERENCE = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[\w\-]+)|/(?P<version>\d+))")
SCHEME = "models:/"
REGISTERED = ("model", "calibrate", "tune", "distill", "train")  # kinds of folders that other commands take
LONGEST_TAG = 5000  # characters that MLflow keeps of a tag


@dataclass(frozen=True)
class Version:
    """A version of a registered name.

    Args:
        name: The registered name.
        number: Of the version, from 1.
        kind: "model", "calibrate" (a certified policy), "tune", "distill" (a student) or "train" (an agent).
        aliases: Names of this version, such as champion.
        digest: SHA-256 of its files.
        tags: Lineage: weights' fingerprint, teacher, target, date.
    """

    name: str
    number: int
    kind: str
    aliases: tuple[str, ...]
    digest: str
    tags: Mapping[str, str]


def register(
    folder: Path,
    name: str,
    alias: str | None = None,
    target: str = "mlflow",
    lineage: Mapping[str, str] | None = None,
) -> Version:
    """Log a folder and make it a new version of a name; the same files are one version.

    Args:
        folder: A pipeline, a certified policy, grids of `tune`, a student or an agent.
        name: What it is called in the registry.
        alias: A name for this version, such as challenger.
        target: "mlflow", "sqlite:///FILE" or the URI of a server.
        lineage: More tags that say where it comes from, such as the versions of its data.

    Raises:
        SpecError: a name that is none.
        OutputError: a folder of another kind, or an MLflow that cannot be reached.
    """
    check_name(name, "name")
    if alias is not None:
        check_name(alias, "alias")
    record, files = read_folder(folder), manifest(folder)
    if record.kind not in REGISTERED:
        raise OutputError(f"{folder}: results of {record.kind} are logged, not registered: nothing runs them.")
    tracker = MlflowTracker(target)
    run_id = tracker.log_folder(folder).run_id
    with connect(tracker.uri) as client:
        found = next((v for v in _versions(client, name) if v.digest == digest(files)), None)
        if found is None:
            found = _create(client, name, run_id, record.kind, files, {**record.tags, **(lineage or {})})
        if alias is not None:
            client.set_registered_model_alias(name, alias, str(found.number))
        return _read(client, client.get_model_version(name, str(found.number)))


def _create(
    client: Any, name: str, run_id: str, kind: str, files: Mapping[str, str], tags: Mapping[str, str]
) -> Version:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    listed = json.dumps(dict(files))
    lineage = {k: v[:LONGEST_TAG] for k, v in tags.items() if k != "command"}
    said = {KIND: kind, DIGEST: digest(files), **({FILES: listed} if len(listed) <= LONGEST_TAG else {})}
    source = client.get_run(run_id).info.artifact_uri
    return _read(client, client.create_model_version(name, source, run_id, tags={**lineage, **said}))


def promote(
    name: str, version: str, alias: str = "champion", target: str = "mlflow", cache: Path | None = None
) -> Version:
    """Move an alias to a version, after its files were downloaded and found to be those that were registered.

    A rollback is a promotion of the older version.

    Args:
        name: Registered.
        version: A number, or another alias of it.
        alias: That moves.
        target: Of the registry.
        cache: Where downloads are, as of `fetch`.

    Raises:
        SpecError: no such name, version or alias.
        OutputError: files that were changed, or an MLflow that cannot be reached.
    """
    check_name(alias, "alias")
    reference = f"{SCHEME}{name}/{version}" if version.isdigit() else f"{SCHEME}{name}@{version}"
    found = find(reference, target)
    fetch(reference, target, cache)
    uri = parse_uri(target)
    with connect(uri) as client:
        client.set_registered_model_alias(name, alias, str(found.number))
        return _read(client, client.get_model_version(name, str(found.number)))


def versions(name: str | None = None, target: str = "mlflow") -> list[Version]:
    """All versions of a name, or of every name. Raises OutputError."""
    with connect(parse_uri(target)) as client:
        names = [name] if name else [one.name for one in client.search_registered_models()]
        return [version for one in names for version in _versions(client, one)]


def find(reference: str, target: str = "mlflow") -> Version:
    """The version that models:/NAME@ALIAS or models:/NAME/NUMBER names.

    Raises:
        SpecError: a reference that is none, or that names nothing; the message lists what there is.
        OutputError: an MLflow that cannot be reached.
    """
    parts = REFERENCE.fullmatch(reference)
    if parts is None:
        raise SpecError(f"Expected models:/NAME@ALIAS or models:/NAME/VERSION, got {reference!r}.")
    check_name(parts["name"], "name")
    with connect(parse_uri(target)) as client:
        known = _versions(client, parts["name"])
    for version in known:
        if parts["alias"] in version.aliases or str(version.number) == parts["version"]:
            return version
    there = ", ".join(f"{v.number}{''.join(f' @{a}' for a in v.aliases)}" for v in known)
    if there:
        raise SpecError(f"{reference}: no such version. {parts['name']} has: {there}.")
    raise SpecError(f"{reference}: nothing is registered as {parts['name']!r}. Type: skipstone runs registered.")


def fetch(reference: str, target: str = "mlflow", cache: Path | None = None) -> Path:
    """The folder of a registered version, downloaded once, and held against the sums of its registration.

    Args:
        reference: models:/NAME@ALIAS or models:/NAME/NUMBER.
        target: Of the registry.
        cache: Where downloads are; ~/.cache/skipstone/registered by default.

    Raises:
        SpecError: a reference that names nothing.
        OutputError: files that were changed since, or an MLflow that cannot be reached.
    """
    version = find(reference, target)
    root = cache or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "skipstone" / "registered"
    folder = root / version.digest[:16] / version.name
    if not folder.is_dir() or digest(manifest(folder)) != version.digest:
        _download(version, parse_uri(target), folder)
    return folder


def _download(version: Version, uri: str, folder: Path) -> None:
    """Fill a folder with the files of a version, or leave it as it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with connect(uri) as client, tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
        source = client.get_model_version(version.name, str(version.number))
        place = Path(client.download_artifacts(source.run_id, "", part))
        expected = _expected(place, version)
        (place / SUMS_FILE).unlink(missing_ok=True)
        found = manifest(place)
        if digest(found) != version.digest:
            changed = differences(expected, found)
            raise OutputError(
                f"{SCHEME}{version.name}/{version.number}: its files are not those that were registered: "
                f"{', '.join(changed[:5]) or 'the manifest was changed'}. Register the folder again."
            )
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(place, folder)


def _expected(place: Path, version: Version) -> dict[str, str]:
    """The manifest of a version: of its tag, or of the file beside the others."""
    text = version.tags.get(FILES)
    try:
        found = json.loads(text or (place / SUMS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _versions(client: Any, name: str) -> list[Version]:
    found = client.search_model_versions(f"name = '{name}'")
    aliases = client.get_registered_model(name).aliases if found else {}
    return sorted((_version(one, aliases) for one in found), key=lambda version: version.number)


def _read(client: Any, found: Any) -> Version:
    return _version(found, client.get_registered_model(found.name).aliases)


def _version(found: Any, aliases: Mapping[str, Any]) -> Version:
    tags = dict(found.tags)
    own = tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(found.version)))
    return Version(found.name, int(found.version), tags.get(KIND, ""), own, tags.get(DIGEST, ""), tags)


def check_name(name: str, what: str) -> None:
    """Raise SpecError for a name that MLflow, folders or specs would not take; `what` is what it is the name of."""
    if not re.fullmatch(r"[A-Za-z][\w\-]{0,99}", name):
        raise SpecError(f"{what}: expected a letter, then letters, digits, - or _, at most 100, got {name!r}.")
