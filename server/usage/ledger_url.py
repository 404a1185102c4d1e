"""Checks the URL of the ledger's database before the server starts, without its driver, which takes time to import."""

import re
from urllib.parse import urlsplit


def check(url: str) -> None:
    """Raises ValueError, without the URL, for what PostgreSQL's driver could not read or would read differently."""
    try:
        address = urlsplit(url)
        port = address.port  # raises ValueError if it is no number
    except ValueError:
        port = 0
    if port == 0 or address.netloc.count("@") > 1 or re.search("%(?![0-9A-Fa-f]{2})", url):
        what = "must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        raise ValueError(f"{what}; write special characters of user and password as %XX")
