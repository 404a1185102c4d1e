"""The tokens that an endpoint reports, under the names that endpoints use."""

from collections.abc import Mapping
from typing import Any, TypeGuard

_MAX_TOKENS = 2**31 - 1  # a larger number is no count
_NAMES = (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens"))
_CACHED_NAMES = ("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens")


def read_usage(reported: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Tokens of prompt and answer, and cached ones of the prompt; None if the first two are not both counts."""
    pairs = ((reported.get(prompt), reported.get(completion)) for prompt, completion in _NAMES)
    prompt, completion = next((pair for pair in pairs if _is_count(pair[0])), (None, None))
    if not _is_count(prompt):
        return None
    total = reported.get("total_tokens")
    # Gemini leaves out an answer of zero tokens, and counts thinking in the total alone.
    if _is_count(total) and total >= prompt and (completion is None or _is_count(completion)):
        completion = max(completion or 0, total - prompt)
    return (prompt, completion, _cached(reported, prompt)) if _is_count(completion) else None


def _cached(reported: Mapping[str, Any], prompt: int) -> int:
    details = reported.get("prompt_tokens_details")
    holders = (details if isinstance(details, dict) else {}, reported)
    found = next((holder[name] for holder in holders for name in _CACHED_NAMES if holder.get(name) is not None), 0)
    return found if _is_count(found) and found <= prompt else 0


def _is_count(number: object) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= _MAX_TOKENS
