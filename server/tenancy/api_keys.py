"""API keys: `qk_ID_SECRET`, and the salted hashes that are stored of them.

The secret has 256 random bits, so it cannot be guessed and one round of SHA-256 is enough. A slow password hash would
only let a flood of wrong keys use up the processor. Checking takes the same time whether or not the
key's id exists.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass

ID = "[a-z0-9]{4,32}"
_KEY = re.compile(rf"qk_({ID})_[A-Za-z0-9_-]{{43}}")
_LIKE_A_KEY = re.compile(r"qk_[A-Za-z0-9_-]+")
_HASH = re.compile(r"sha256:((?:[0-9a-f]{2}){16,64}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The stored part of a key. `expires` is in seconds since the epoch."""

    salt: bytes
    digest: bytes
    expires: float

    def matches(self, key: str) -> bool:
        """Whether this is the key, in constant time."""
        return hmac.compare_digest(hashlib.sha256(self.salt + key.encode()).digest(), self.digest)


NO_KEY = ApiKey(bytes(16), bytes(32), 0.0)  # no known key matches it


def id_of(key: str) -> str | None:
    """The id in a key, or None if the text is not a key."""
    found = _KEY.fullmatch(key)
    return found[1] if found else None


def without_keys(text: str) -> str:
    """The text with stars in place of keys and parts of keys."""
    return _LIKE_A_KEY.sub("qk_***", text)


def parse_hash(text: object) -> tuple[bytes, bytes]:
    """Salt and digest of "sha256:SALT:DIGEST", both in hexadecimal. Raises ValueError, without the text."""
    found = _HASH.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise ValueError("must be sha256:SALT:DIGEST as 'quintet tenants add' writes it")
    return bytes.fromhex(found[1]), bytes.fromhex(found[2])
