"""Long texts in parts that fit into a document of the contract."""

import re
from collections.abc import Iterator
from typing import NamedTuple

# Where a part may end, the best first: before a blank line, a line's end, a sentence's, a word's.
_BORDERS = (re.compile(r"\n[^\S\n]*\n"), re.compile(r"\n"), re.compile(r"(?<=[.!?。！？])\s?"), re.compile(r"\s"))


class Part(NamedTuple):
    """A piece of a text that begins at code point `start` of it."""

    start: int
    text: str


def split(text: str, limit: int) -> Iterator[Part]:
    """Parts of at most `limit` code points, without the white space between them; a text that fits is one part."""
    start = 0
    while start < len(text):
        end = len(text) if len(text) - start <= limit else _border(text, start, limit)
        part = text[start:end].strip()
        if part:
            yield Part(start + text[start:end].index(part[0]), part)
        start = end


def _border(text: str, start: int, limit: int) -> int:
    """The last border in the second half of what fits, so that no part is a scrap; else the limit."""
    for border in _BORDERS:
        found = [match.end() for match in border.finditer(text, start + limit // 2, start + limit)]
        if found:
            return found[-1]
    return start + limit
