"""API keys: `qk_ID_SECRET`, and what is kept of them.

The secret is 256 random bits, so nobody can try them all, and one round of salted SHA-256 keeps a key as safe as it
can be. Slow hashes exist for passwords, which people choose; here one would only let a flood of wrong keys take the
processor. Checking a key costs the same whether or not there is one of its id, and nothing is kept of wrong ones.
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
class StoredKey:
    """What is kept of a key. `expires` is in seconds since the epoch."""

    id: str
    salt: bytes
    digest: bytes
    expires: float

    def fits(self, key: str) -> bool:
        """Whether it is this key. Takes the same time for all keys of a length."""
        return hmac.compare_digest(hashlib.sha256(self.salt + key.encode()).digest(), self.digest)


NOBODYS = StoredKey("", bytes(16), bytes(32), 0.0)  # no key is known that fits


def id_of(key: str) -> str | None:
    """The id in a key, or None if the text is no key."""
    found = _KEY.fullmatch(key)
    return found[1] if found else None


def without_keys(text: str) -> str:
    """The text with stars for keys and for what may be a part of one."""
    return _LIKE_A_KEY.sub("qk_***", text)


def parse_hash(text: str) -> tuple[bytes, bytes]:
    """Salt and digest of "sha256:SALT:DIGEST", both in hexadecimal. Raises ValueError, without the text."""
    found = _HASH.fullmatch(text)
    if not found:
        raise ValueError("must be sha256:SALT:DIGEST as 'quintet tenants add' writes it")
    return bytes.fromhex(found[1]), bytes.fromhex(found[2])
