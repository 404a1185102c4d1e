"""Control tokens of a language model, such as "<|im_end|>", in the texts of callers and documents.

llama.cpp reads them wherever they stand in the prompt, so a text with them could end its message and begin another one,
for instance the system's. With a space inside they are ordinary text that the model can still read.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from server.domain.chat import Message


class ControlTokens:
    """Those of one model's vocabulary."""

    def __init__(self, tokens: Iterable[str]) -> None:
        longest_first = sorted((token for token in tokens if len(token.strip()) > 1), key=len, reverse=True)
        self._found = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def neutralised(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages without control tokens in their contents."""
        if self._found is None or not any(self._found.search(message.content) for message in messages):
            return messages
        return [replace(message, content=self._split(message.content)) for message in messages]

    def _split(self, text: str) -> str:
        assert self._found is not None
        while self._found.search(text):  # again, in case of a token with a space
            text = self._found.sub(_with_space, text)
        return text


def _with_space(token: re.Match[str]) -> str:
    """With a space after its first character that is none."""
    rest = token[0].lstrip()[1:]
    return f"{token[0].removesuffix(rest)} {rest}"
