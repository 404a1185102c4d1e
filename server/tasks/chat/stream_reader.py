"""Reading what an endpoint of the OpenAI protocol streams."""

from collections.abc import Mapping
from typing import Any, TypeGuard

_MOST_TOKENS = 2**31 - 1  # more in one generation is no count


class Answer:
    """What is known of an answer so far."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: tuple[int, int, int] | None = None  # tokens of prompt and answer, cached ones of the prompt
        self.model = ""
        self.texts: list[str] = []

    def add(self, chunk: Any) -> str:
        """Take note of a chunk and return its text. The last chunk may carry usage and no choice.

        Raises one of the errors of which `translated` makes UpstreamFailed if the chunk is none.
        """
        self.model = chunk.get("model") or self.model
        if usage := chunk.get("usage"):
            self.usage = _usage(usage) if isinstance(usage, dict) else None
        if not (choices := chunk.get("choices")):
            return ""
        choice = choices[0]
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        return choice["delta"].get("content") or ""


def _usage(reported: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Counts of prompt, answer and cached tokens; None if the first two are not both counts."""
    prompt, completion = reported.get("prompt_tokens"), reported.get("completion_tokens")
    if not (_is_count(prompt) and _is_count(completion)):
        return None
    details = reported.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return prompt, completion, cached if _is_count(cached) and cached <= prompt else 0


def _is_count(number: object) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= _MOST_TOKENS
