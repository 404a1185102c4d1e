"""Counting tokens before a language model is asked."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer

from server.domain.chat import Message
from server.domain.threads import Threads

# 32,000 code points take 20 to 110 ms, so longer texts are counted on a thread; tokenizers releases the GIL.
_ON_THE_LOOP = 500
_THREADS = Threads("tokens", 2)  # no other work holds these
T = TypeVar("T")
_TURN_TOKENS = 4  # around a message, if the model's chat template is unknown


class TokenCounter:
    """Counts without the model's tokenizer: a quarter of the UTF-8 bytes, rounded up. That is near for English, and for
    Chinese with three bytes a character.
    """

    exact = False  # whether the model itself would count the same

    def text(self, text: str) -> int:
        return math.ceil(len(text.encode()) / 4)

    def prompt(self, messages: Sequence[Message]) -> int:
        """Tokens of a conversation in the model's chat template."""
        return sum(self.text(message.content) + _TURN_TOKENS for message in messages)

    def estimate(self, messages: Sequence[Message]) -> int:
        """As prompt(), without blocking: for a long conversation a third of its bytes, more than most texts have."""
        if _code_points(messages) <= _ON_THE_LOOP:
            return self.prompt(messages)
        return sum(math.ceil(len(message.content.encode()) / 3) + _TURN_TOKENS for message in messages)

    async def count_text(self, text: str) -> int:
        """As text(), on a thread if it is long."""
        return self.text(text) if len(text) <= _ON_THE_LOOP else await _on_a_thread(self.text, text)

    async def count_prompt(self, messages: Sequence[Message]) -> int:
        """As prompt(), on a thread if it is long."""
        if _code_points(messages) <= _ON_THE_LOOP:
            return self.prompt(messages)
        return await _on_a_thread(self.prompt, messages)


async def _on_a_thread(count: Callable[[T], int], counted: T) -> int:
    return await _THREADS.run(partial(count, counted))


def _code_points(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)


@dataclass(frozen=True, slots=True)
class Frame:
    """A model's chat template, as its manifest has it: what stands before and after a message, before the answer, and
    at the start of a conversation without instructions. "{role}" in `before` is the message's role.
    """

    before: str
    after: str
    answer: str
    unless_system: str

    def around(self, messages: Sequence[Message]) -> str:
        """The conversation as the model reads it."""
        texts = [self.before.replace("{role}", each.role) + each.content + self.after for each in messages]
        start = "" if messages[0].role == "system" else self.unless_system
        return "".join((start, *texts, self.answer))


class TokenizerCounter(TokenCounter):
    """Counts with a tokenizer.json, exactly if the model's frame is known."""

    def __init__(self, path: Path, frame: Mapping[str, str] | None = None) -> None:
        """Blocks for half a second. Raises OSError or ValueError."""
        text = path.read_text(encoding="utf-8")
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library has no class of its own
            raise ValueError("it is no tokenizer.json") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._frame = Frame(**frame) if frame else None
        self.exact = frame is not None

    @property
    def control_tokens(self) -> Iterable[str]:
        """Control tokens and tokens defined by the model's authors, which are found before a text is split."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    def text(self, text: str) -> int:
        return len(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])

    def prompt(self, messages: Sequence[Message]) -> int:
        return super().prompt(messages) if self._frame is None else self.text(self._frame.around(messages))
