"""Text of other programs as valid Unicode."""

import re
from collections.abc import Iterator

_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_PIECE = 16 * 1024  # code points of one message to the caller


class TextRepair:
    """Makes the parts of a text valid: two halves of a surrogate pair become one character, also over two parts; a
    half without the other becomes U+FFFD.
    """

    def __init__(self) -> None:
        self._half = ""  # the first half of a pair, at the end of the text so far

    def add(self, text: str) -> str:
        """The next part, without a half at its end that the next one may complete."""
        if not self._half and (text.isascii() or not _SURROGATE.search(text)):
            return text
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return repaired(text)

    def end(self) -> str:
        """What is left at the end of the text."""
        half, self._half = self._half, ""
        return repaired(half)


def repaired(text: str) -> str:
    """With surrogate pairs joined and lone halves replaced by U+FFFD, so that it can be encoded."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def pieces_of(text: str) -> Iterator[str]:
    """The text in pieces that fit any message."""
    for start in range(0, len(text), _MAX_PIECE):
        yield text[start : start + _MAX_PIECE]
