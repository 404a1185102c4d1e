"""Splits long texts into parts that fit into a document of the contract."""

import re
from collections.abc import Iterator
from typing import NamedTuple

# Where a part may end, best first: at a blank line, a line end, a sentence end, between words.
_BORDERS = (re.compile(r"\n[^\S\n]*\n"), re.compile(r"\n"), re.compile(r"(?<=[.!?。！？])\s?"), re.compile(r"\s"))


class Part(NamedTuple):
    """A part of a text; `start` is its offset in code points."""

    start: int
    text: str


def split(text: str, limit: int) -> Iterator[Part]:
    """Parts of at most `limit` code points, without surrounding white space; a text that fits is one part."""
    start = 0
    while start < len(text):
        end = len(text) if len(text) - start <= limit else _border(text, start, limit)
        part = text[start:end].strip()
        if part:
            yield Part(start + text[start:end].index(part[0]), part)
        start = end


def _border(text: str, start: int, limit: int) -> int:
    """The last border in the second half of the limit, so that no part is tiny; else the limit."""
    for border in _BORDERS:
        found = [match.end() for match in border.finditer(text, start + limit // 2, start + limit)]
        if found:
            return found[-1]
    return start + limit
