"""Reading what an endpoint of the OpenAI protocol streams."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

_MAX_TOKENS = 2**31 - 1  # a larger number is no count


class Answer:
    """What is known of an answer so far. `usage` is tokens of prompt and answer, and cached ones of the prompt."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: tuple[int, int, int] | None = None
        self.model = ""
        self.texts: list[str] = []

    def add(self, chunks: Iterable[Any]) -> str:
        """Note chunks and return their text. The last chunk may have usage and no choice.

        An object that is no chunk raises an error that `translated` turns into UpstreamFailed.
        """
        text = "".join([self._text_of(chunk) for chunk in chunks])
        if text:
            self.texts.append(text)
        return text

    def _text_of(self, chunk: Any) -> str:
        self.model = chunk.get("model") or self.model
        if usage := chunk.get("usage"):
            self.usage = _usage(usage) if isinstance(usage, dict) else None
        if not (choices := chunk.get("choices")):
            return ""
        choice = choices[0]
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        return choice["delta"].get("content") or ""


def _usage(reported: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """None if the tokens of prompt and answer are not both counts."""
    prompt, completion = reported.get("prompt_tokens"), reported.get("completion_tokens")
    if not (_is_count(prompt) and _is_count(completion)):
        return None
    details = reported.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return prompt, completion, cached if _is_count(cached) and cached <= prompt else 0


def _is_count(number: object) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= _MAX_TOKENS
