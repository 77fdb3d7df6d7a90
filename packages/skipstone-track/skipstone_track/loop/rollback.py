"""Back to an older version: the alias moves, its files come back, and the server reads them."""

from __future__ import annotations

from collections.abc import Callable

from skipstone.errors import SpecError

from ..registry import SCHEME, Version, fetch, promote, versions
from .release import find_champion, read_key, registered_cache, replace_release
from .round import model_folder
from .server import Server
from .settings import LoopSettings


def roll_back(settings: LoopSettings, number: int | None, say: Callable[[str], None]) -> Version:
    """Move the alias to an older version, put its weights and certificates in place, and have the server read them.

    Args:
        settings: Of a loop that nobody runs now.
        number: Of the version; None is the one before that of the alias.
        say: Called with each line about what happens.

    Raises:
        SpecError: no such version.
        OutputError: a registry that cannot be reached, or files that were changed.
        ServingError: the server refuses them; then the model's folder is as it was.
    """
    wanted = find_version(settings, number)
    cache, uri = registered_cache(settings), settings.tracker
    replaced = replace_release(model_folder(settings), fetch(f"{SCHEME}{wanted.name}/{wanted.number}", uri, cache))
    try:
        if settings.deploy.address:
            server = Server(settings.deploy.address.rstrip("/"), read_key(settings.deploy.admin_key), settings.name)
            say(f"the server has read it again in {server.reload()['seconds']:.1f} s while it drew")
        found = promote(wanted.name, str(wanted.number), settings.register.alias, uri, cache)
    except BaseException:
        replaced.put_back()
        raise
    replaced.forget()
    say(f"{SCHEME}{found.name}/{found.number} is @{settings.register.alias}, and in {model_folder(settings)}")
    return found


def find_version(settings: LoopSettings, number: int | None) -> Version:
    """The version of a number, or the one before that of the alias. Raises SpecError, OutputError."""
    known = versions(settings.registered_name, settings.tracker)
    champion = find_champion(settings)
    if number is None:
        older = [one for one in known if champion is not None and one.number < champion.number]
        if not older:
            raise SpecError(f"rollback: {settings.registered_name} has no version before that of the alias.")
        return older[-1]
    if found := next((one for one in known if one.number == number), None):
        return found
    there = ", ".join(str(one.number) for one in known) or "none"
    raise SpecError(f"rollback: {settings.registered_name} has no version {number}. It has: {there}.")
