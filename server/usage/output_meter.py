"""What an endpoint is believed: how much text it may send, and which counts of tokens can be true."""

import math
from collections.abc import Callable

from server.domain.usage import Usage

_CODE_POINTS = 4  # in a token of most texts


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

    `count` (tokens of a text) takes long, so it is asked only when the number of bytes, which no tokenizer exceeds, may
    be over the limit. Texts are counted in pieces that end before a space, where tokens begin.
    """

    def __init__(self, count: Callable[[str], int], limit: int) -> None:
        self._count_text = count
        self._limit = limit
        self._counted = 0  # tokens
        self._pending: list[str] = []  # delivered and not yet counted
        self._most_pending = 0  # tokens, at most
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
        self._count_pending("")
        return self._limit if self._held else self._counted

    def take(self, text: str) -> str:
        """The part of the next text that is within the limit."""
        self.code_points += len(text)
        if self._held:
            self._hold(text)
            return ""
        most = _most_tokens(text)
        if self._counted + self._most_pending + most <= self._limit:
            self._pending.append(text)
            self._most_pending += most
            return text
        return self._take_counted(text)

    def _take_counted(self, text: str) -> str:
        self._pending.append(text)
        whole = "".join(self._pending)
        delivered = len(whole) - len(text)
        fits = self._fitting(whole)
        if fits < len(whole):
            fits = max(fits, delivered)
            self._hold(whole[fits:])
            self._pending, self._most_pending = [], 0
            self._counted = self._limit
            return whole[delivered:fits]
        space = whole.rfind(" ")
        self._count_pending(whole[space:] if space > 0 else "")
        return text

    def _count_pending(self, keep: str) -> None:
        """Count what is pending, but for its end."""
        whole = "".join(self._pending)
        self._counted += self._count(whole[: len(whole) - len(keep)])
        self._pending, self._most_pending = ([keep], _most_tokens(keep)) if keep else ([], 0)

    def _fitting(self, text: str) -> int:
        """How many code points of a text fit beside what is counted. Counts little more than those."""
        room = self._limit - self._counted
        low, high = 0, min(len(text), _CODE_POINTS * room + 64)
        while self._count(text[:high]) <= room:
            if high == len(text):
                return high
            low, high = high, min(2 * high, len(text))
        while high - low > 1:
            middle = (low + high) // 2
            if self._count(text[:middle]) <= room:
                low = middle
            else:
                high = middle
        return low

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


def _most_tokens(text: str) -> int:
    return len(text) if text.isascii() else 4 * len(text)
