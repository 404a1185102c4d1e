"""Counting tokens before a language model is asked."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from server.domain.chat import Message

# 32,000 code points take 20 to 110 ms, so longer texts are counted on a thread; tokenizers lets go of the GIL.
_ON_THE_LOOP = 500
_FRAME_TOKENS = 4  # around a turn, where nobody knows better


class TokenCounter(Protocol):
    """Counts as a model does, or nearly: then it is not `exact`."""

    exact: bool

    def text(self, text: str) -> int:
        """Tokens of a text."""
        ...

    def prompt(self, messages: Sequence[Message]) -> int:
        """Tokens of a conversation with the words around its turns."""
        ...


class ByteCounter:
    """Implements `TokenCounter` without knowing the model: a quarter of the UTF-8 bytes, rounded up, which is near for
    English, and for Chinese with three bytes a character.
    """

    exact = False

    def text(self, text: str) -> int:
        """A quarter of the bytes."""
        return math.ceil(len(text.encode()) / 4)

    def prompt(self, messages: Sequence[Message]) -> int:
        """The same, and four tokens around each turn."""
        return _framed(self, messages)


@dataclass(frozen=True, slots=True)
class Frame:
    """The words of a model's chat template: before and after a turn, before the answer, and at the start of a
    conversation without instructions. "{role}" in `before` is the turn's role.
    """

    before: str
    after: str
    answer: str
    unless_system: str

    def around(self, messages: Sequence[Message]) -> str:
        """The conversation as the model reads it."""
        said = [self.before.replace("{role}", each.role) + each.content + self.after for each in messages]
        start = "" if messages[0].role == "system" else self.unless_system
        return "".join((start, *said, self.answer))


class TokenizerCounter:
    """Implements `TokenCounter` with a tokenizer.json. Without the model's frame, or for another model than the
    tokenizer's, it is not exact.
    """

    def __init__(self, tokenizer: Tokenizer, frame: Frame | None, *, exact: bool) -> None:
        self._tokenizer = tokenizer
        self._frame = frame
        self.exact = exact

    @classmethod
    def read(cls, path: Path, frame: Mapping[str, str] | None = None) -> "TokenizerCounter":
        """From a file. Blocks for half a second. Raises OSError or ValueError."""
        text = path.read_text(encoding="utf-8")
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library has no class of its own
            raise ValueError("it is no tokenizer.json") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, Frame(**frame) if frame else None, exact=frame is not None)

    def text(self, text: str) -> int:
        """What the tokenizer makes of it."""
        return len(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])

    def prompt(self, messages: Sequence[Message]) -> int:
        """The conversation in its frame; without one, four tokens around each turn."""
        if self._frame is None:
            return _framed(self, messages)
        return self.text(self._frame.around(messages))


async def prompt_tokens(counter: TokenCounter, messages: Sequence[Message]) -> int:
    """Tokens of a conversation; a long one is counted off the loop."""
    if _code_points(messages) <= _ON_THE_LOOP:
        return counter.prompt(messages)
    return await asyncio.to_thread(counter.prompt, messages)


async def text_tokens(counter: TokenCounter, text: str) -> int:
    """The same for a text."""
    return counter.text(text) if len(text) <= _ON_THE_LOOP else await asyncio.to_thread(counter.text, text)


def estimated_tokens(counter: TokenCounter, messages: Sequence[Message]) -> int:
    """Tokens of a conversation, at once: a third of the bytes of a long one, which is more than most texts have."""
    if _code_points(messages) <= _ON_THE_LOOP:
        return counter.prompt(messages)
    return sum(math.ceil(len(message.content.encode()) / 3) + _FRAME_TOKENS for message in messages)


def _code_points(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)


def _framed(counter: TokenCounter, messages: Sequence[Message]) -> int:
    return sum(counter.text(message.content) + _FRAME_TOKENS for message in messages)
