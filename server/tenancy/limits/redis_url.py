"""Checks Redis's URL before the server starts."""

import re
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError


def check(url: str) -> None:
    """Raises ValueError, without the URL, for what redis-py cannot read or would ignore."""
    try:  # the texts of errors would show parts of the password
        pool: Any = ConnectionPool.from_url(url)
        pool.make_connection()
        has_database = url.startswith("unix:") or re.fullmatch("/?[0-9]*", urlsplit(url).path)
    except ValueError:
        what = "must begin with redis://, rediss:// or unix://; write special characters of a password as %XX"
        raise ValueError(what) from None
    except (TypeError, RedisError):
        raise ValueError("has an option after ? that is unknown or cannot have this value") from None
    if not has_database:
        raise ValueError("must have the number of a database after the address, or nothing")
