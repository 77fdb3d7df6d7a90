"""API keys: a file with one a line; compared in constant time, never shown."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path

from ...errors import SpecError
from ..refusals import WrongKey

MIN_KEY = 16  # characters, so that keys cannot be guessed
SCHEME = "Bearer "
NO_KEY = ""  # who asks where no keys are needed


@dataclass(frozen=True)
class Keys:
    """The keys that are accepted; none accepts everybody.

    Args:
        digests: SHA-256 of each.
    """

    digests: tuple[bytes, ...] = ()

    @staticmethod
    def read(path: Path) -> Keys:
        """Read a file with one key a line; what follows a # is a comment.

        Raises:
            SpecError: no key, or a short one.
            OSError: a file that cannot be read.
        """
        lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
        keys = [line for line in lines if line]
        if not keys:
            raise SpecError(f"{path}: expected at least one key, each on a line of its own, got none.")
        if any(len(key) < MIN_KEY for key in keys):
            raise SpecError(f"{path}: expected keys of at least {MIN_KEY} characters. Make one: openssl rand -hex 16")
        return Keys(tuple(hashlib.sha256(key.encode()).digest() for key in keys))

    def check(self, authorization: str | None) -> str:
        """Who asks, as a name for quotas that does not tell the key.

        Args:
            authorization: The header of that name.

        Raises:
            WrongKey: no key, or an unknown one.
        """
        if not self.digests:
            return NO_KEY
        given = authorization or ""
        if not given.startswith(SCHEME):
            raise WrongKey("Expected an API key in the header Authorization: Bearer KEY, got none.")
        digest = hashlib.sha256(given[len(SCHEME) :].encode()).digest()
        equal = [hmac.compare_digest(digest, known) for known in self.digests]  # all of them: time tells nothing
        if not any(equal):
            raise WrongKey("The API key is not one of this server's.")
        return digest.hex()[:16]
