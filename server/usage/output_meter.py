"""What an endpoint is believed: how much text it may send, and which counts of tokens can be true."""

import math
from collections.abc import Callable

from server.domain.usage import Usage

_CODE_POINTS = 4  # in a token of most texts
_PIECE, _KEPT = 2048, 256  # code points of a piece, and of its end that begins the next one


def allowance(limit: int) -> int:
    """Tokens by our count up to which an endpoint may keep a limit of its own tokens. Tokenizers differ by a factor of
    two for digits, code with indentation, and some scripts.
    """
    return 2 * limit + 16


def is_believable(reported: Usage, own_prompt_tokens: int, code_points: int, limit: int) -> bool:
    """Whether a provider's count can be true for an answer of `code_points` that was asked to have `limit` tokens.

    A token has 4 code points in most texts; a mean of 16 over an answer does not occur. Some endpoints leave cached
    tokens out of the prompt's and others add instructions of their own, so the prompt has more room.
    """
    prompt, completion = reported.prompt_tokens, reported.completion_tokens
    if (code_points and not completion) or not prompt:
        return False
    if 4 * _CODE_POINTS * completion < code_points - 16 or completion > allowance(limit):
        return False
    return own_prompt_tokens - 16 <= 16 * prompt and prompt <= 16 * own_prompt_tokens + 4096


class OutputMeter:
    """Counts the tokens of an answer while it arrives. Text beyond `limit` tokens is held back: an endpoint whose own
    count is within the limit gets it delivered at the end. `is_over` once more is held than tokenizers differ by.

    `count` (tokens of a text) takes long, so it is asked only when the limit may have been reached: new text has at
    most as many tokens as bytes. The pieces of a long answer end before a space, where tokens begin.
    """

    def __init__(self, count: Callable[[str], int], limit: int) -> None:
        self._count_text = count
        self._limit = limit
        self._counted = 0  # tokens of earlier pieces
        self._pending: list[str] = []  # the latest piece, delivered
        self._most_pending = 0  # its tokens, at most
        self._held: list[str] = []
        self._held_code_points = 0
        self.code_points = 0  # that arrived

    @property
    def is_over(self) -> bool:
        return self._held_code_points > _CODE_POINTS * (allowance(self._limit) - self._limit)

    @property
    def held(self) -> str:
        return "".join(self._held)

    @property
    def tokens(self) -> int:
        """By our count; the limit at most."""
        return self._limit if self._held else self._counted + self._count("".join(self._pending))

    def take(self, text: str) -> str:
        """The part of the next text that is within the limit."""
        self.code_points += len(text)
        if self._held:
            self._hold(text)
            return ""
        most = len(text) if text.isascii() else 4 * len(text)
        if self._counted + self._most_pending + most <= self._limit:
            self._pending.append(text)
            self._most_pending += most
            return text
        return self._take_counted(text)

    def _take_counted(self, text: str) -> str:
        piece = "".join((*self._pending, text))
        delivered = len(piece) - len(text)
        fits, tokens = self._fitting(piece)
        if fits < len(piece):
            fits = max(fits, delivered)
            self._hold(piece[fits:])
            self._pending.clear()
            return piece[delivered:fits]
        self._pending, self._most_pending = [piece], tokens
        if len(piece) > _PIECE:
            self._begin_piece(piece)
        return text

    def _begin_piece(self, piece: str) -> None:
        end = piece.rfind(" ", len(piece) - _KEPT)
        end = end if end > 0 else len(piece)
        self._counted += self._count(piece[:end])
        self._pending, self._most_pending = [piece[end:]], self._count(piece[end:])

    def _fitting(self, piece: str) -> tuple[int, int]:
        """How many code points of a piece are within the limit, and their tokens. Counts little more than those."""
        room = self._limit - self._counted
        low, high = 0, min(len(piece), _CODE_POINTS * room + 64)
        while (tokens := self._count(piece[:high])) <= room:
            if high == len(piece):
                return high, tokens
            low, high = high, min(2 * high, len(piece))
        while high - low > 1:
            middle = (low + high) // 2
            if self._count(piece[:middle]) <= room:
                low = middle
            else:
                high = middle
        return low, room

    def _hold(self, text: str) -> None:
        if not self.is_over:
            self._held.append(text)
            self._held_code_points += len(text)

    def _count(self, text: str) -> int:
        if not text:
            return 0
        try:
            return self._count_text(text)
        except Exception:  # whatever a text has in it, its call must be charged
            return math.ceil(len(text.encode(errors="replace")) / _CODE_POINTS)
