"""Errors that endpoints report, in the body of an HTTP error or in a stream, and what they mean.

The words of an error may quote prompts and keys, so they are searched here, and neither logged nor shown.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from server.domain.errors import (
    InvalidRequest,
    PromptTooLong,
    QuintetError,
    UpstreamBrokeOff,
    UpstreamFailed,
    UpstreamFull,
    UpstreamQuotaExhausted,
    UpstreamRefused,
    UpstreamRejected,
    Violation,
)

_CONTEXT_CODES = {
    *("context_length_exceeded", "exceed_context_size_error", "context_window_exceeded"),
    *("string_above_max_length", "tokens_limit_reached"),
}
# Providers say in many ways that a prompt is longer than the context. All name what is too long, how that is measured,
# and that it is too much; limits of rates do so, too.
_CONTEXT_WORDS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\b(context|prompt|inputs?|sequence|messages?|conversation|request)\b",
        r"\b(length|tokens?|window|size|context limit)\b|too long|超长",
        r"exceed|too (long|large|many)|(longer|larger|greater|less) than|\bmax(imum)?\b|limit|overflow|超长"
        r"|reduce the length|must be <=|should be \[",
    )
)
_RATE_WORDS = re.compile(r"rate.?limit|per (min|hour|day|second)|quota")
_QUOTA_CODES = {
    *("insufficient_quota", "insufficient_balance", "insufficient_credits", "insufficient_funds", "payment_required"),
    *("billing_hard_limit_reached", "billing_not_active", "billing_error", "exceeded_current_quota_error"),
    *("credits_exhausted", "quota_exhausted"),
}
_QUOTA_WORDS = re.compile(
    r"insufficient (quota|balance|credits?|funds)|credit balance is too low|(requires|need) more credits|余额不足"
)
_FILTER_CODES = {
    *("content_filter", "content_policy_violation", "responsibleaipolicyviolation", "data_inspection_failed"),
    *("content_filtered", "moderation_blocked", "moderation", "safety"),
}
_FILTER_WORDS = re.compile(r"content exists risk|content management policy|input was flagged|requires moderation")
_FULL_CODES = {
    *("rate_limit_exceeded", "rate_limit_error", "too_many_requests", "rate_limited", "resource_exhausted"),
    *("overloaded", "overloaded_error", "engine_overloaded", "engine_overloaded_error", "server_overloaded"),
    *("slow_down", "capacity_exceeded", "service_tier_capacity_exceeded"),
}
_ALONE_TOO_LARGE = re.compile(r"request too large")  # for a rate limit, however long one waits
_BUSY_STATUSES = {429, 498, 529}  # 498: Groq, 529: Anthropic
# A gateway lost the endpoint, which may have read the request; 520 to 524: Cloudflare.
_GATEWAY_STATUSES = {408, 502, 504, 520, 522, 524}
_LIMIT = re.compile(
    r"(?:(?:maximum|max) (?:context|model|prompt|sequence|input) (?:length|len)|context (?:length|size|window)"
    r"|maximum number of tokens allowed|must be <=)[^\d.]{0,40}(\d{2,9})"
)
_DEFAULT_RETRY_SECONDS, _CONFIGURATION_RETRY_SECONDS = 5.0, 60.0
_MAX_STRINGS, _MAX_DEPTH, _MAX_TEXT = 64, 8, 4000


@dataclass(frozen=True)
class Report:
    """An error's words in lower case: `codes` are what programs compare, `words` what people read. `parameters` are
    the request's fields that it names as wrong, `numbers` its other fields.
    """

    codes: frozenset[str]
    words: str
    parameters: tuple[str, ...]
    numbers: Mapping[str, int]
    retry_after: float | None

    @property
    def status(self) -> int:
        """The HTTP status that the error itself names, or 0."""
        return next((int(code) for code in sorted(self.codes) if code.isdecimal() and 400 <= int(code) < 600), 0)


def read_report(body: object) -> Report:
    """From the JSON or the text of an error, in any provider's shape."""
    codes, words, parameters = set(), [], []
    numbers: dict[str, int] = {}
    retry_after = None
    for name, value in islice(_leaves(body), _MAX_STRINGS):
        if isinstance(value, bool | float) or value is None:
            continue
        if isinstance(value, int):
            numbers.setdefault(name, value)
        text = str(value)[:_MAX_TEXT].lower()
        if name in ("code", "type", "status", "error_type", "reason"):
            codes.add(text)
        elif name in ("param", "loc", "parameter"):
            parameters.append(text)
        elif name in ("retrydelay", "retry_after", "retry_after_seconds"):
            retry_after = _seconds(text.removesuffix("s"))
        else:
            words.append(text)
    return Report(frozenset(codes), "\n".join(words)[:_MAX_TEXT], tuple(parameters), numbers, retry_after)


def _leaves(body: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """The values of a body with their names. Text that is JSON itself, as routers quote providers, is opened."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(body, dict):
        for key, value in body.items():
            yield from _leaves(value, str(key).lower(), depth + 1)
    elif isinstance(body, list):
        for value in body:
            yield from _leaves(value, name, depth + 1)
    elif isinstance(body, str) and body.lstrip().startswith(("{", "[{")):
        try:
            yield from _leaves(json.loads(body), name, depth + 1)
        except (ValueError, RecursionError):
            yield name, body
    else:
        yield name, body


def reported(body: Mapping[str, object]) -> QuintetError:
    """The error of a stream that had begun with HTTP 200."""
    report = read_report(body)
    found = meaning(report, report.status)
    if type(found) in (UpstreamFailed, UpstreamRejected):
        return UpstreamBrokeOff("the language model's endpoint reported an error in its answer")
    return found


def meaning(report: Report, status: int) -> QuintetError:
    """The error for the caller. `status` is HTTP's, or 0 if it is not known."""
    if found := _by_words(report, status):
        return found
    said = f" (HTTP {status})" if status else ""
    if status in (401, 403, 404):
        return UpstreamRefused(
            f"the language model's endpoint refuses the server{said}: the server's configuration of address, key or "
            "model is wrong",
            retry_after=_CONFIGURATION_RETRY_SECONDS,
        )
    if status in _BUSY_STATUSES or _FULL_CODES & report.codes:
        delay = report.retry_after or _DEFAULT_RETRY_SECONDS
        return UpstreamFull("the language model's endpoint is overloaded", retry_after=delay)
    if status in _GATEWAY_STATUSES:
        return UpstreamBrokeOff(f"a gateway lost the connection to the language model's endpoint{said}")
    if status in (0, 409, 425) or status >= 500:
        return UpstreamFailed(f"the language model's endpoint failed{said}")
    return UpstreamRejected(f"the language model's endpoint rejects the request{said}")


def _by_words(report: Report, status: int) -> QuintetError | None:
    """What no repetition changes; providers use different statuses for it."""
    if _FILTER_CODES & report.codes or _FILTER_WORDS.search(report.words):
        return InvalidRequest([Violation("messages", "the language model's endpoint refuses their content")])
    if status == 402 or _QUOTA_CODES & report.codes or _QUOTA_WORDS.search(report.words):
        return UpstreamQuotaExhausted(
            "the quota or the credit of the server's account at the language model's provider is exhausted: the "
            "operator must extend it"
        )
    if status in (413, 429) and _ALONE_TOO_LARGE.search(report.words):
        return UpstreamRejected(f"the request is larger than the provider's rate limit for the server (HTTP {status})")
    return _prompt_too_long(report) if status not in (401, 403, 404, 429) and _is_context(report) else None


def _is_context(report: Report) -> bool:
    if _CONTEXT_CODES & report.codes:
        return True
    words = report.words
    return not _RATE_WORDS.search(words) and all(pattern.search(words) for pattern in _CONTEXT_WORDS)


def _prompt_too_long(report: Report) -> PromptTooLong:
    """With the endpoint's numbers if they can be read: llama.cpp has fields for them, others only words."""
    limit = report.numbers.get("n_ctx")
    if limit is None and (found := _LIMIT.search(report.words)):
        limit = int(found.group(1))
    tokens, exact = report.numbers.get("n_prompt_tokens"), True
    if tokens is None and limit is not None:
        tokens, exact = max(int(number) for number in re.findall(r"\d{2,9}", report.words)), False
    return PromptTooLong(tokens if tokens and tokens > (limit or 0) else None, limit, exact=exact)


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return min(max(seconds, 0.5), 300.0) if math.isfinite(seconds) else None
