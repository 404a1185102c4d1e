"""From the openai SDK's exceptions to ours. Their texts may contain prompts and keys, so they are not even logged."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import openai

from server.domain.errors import (
    InvalidRequest,
    PromptTooLong,
    QuintetError,
    UpstreamFailed,
    UpstreamFull,
    UpstreamRefused,
    UpstreamRejected,
    UpstreamTimeout,
    Violation,
)

log = logging.getLogger(__name__)

_CONTEXT_CODES = {"context_length_exceeded", "exceed_context_size_error"}
# Parameters that callers set, to their names in the contract.
_CALLERS_PARAMETERS = {name: name for name in ("temperature", "top_p", "stop", "seed")}
_CALLERS_PARAMETERS["max_completion_tokens"] = "max_output_tokens"
_DEFAULT_RETRY_SECONDS = 5.0
_CONFIGURATION_RETRY_SECONDS = 60.0


@contextmanager
def translated(provider: str, prompt_tokens: int, context_tokens: int) -> Iterator[None]:
    """Translates what the block raises. `prompt_tokens` is our own count, in case the endpoint reports none."""
    try:
        yield
    except (TimeoutError, openai.APITimeoutError):
        raise UpstreamTimeout("the language model's endpoint did not answer in time") from None
    except openai.APIStatusError as error:
        log.warning("provider %s: HTTP %d, request id %s", provider, error.status_code, error.request_id)
        raise _refusal(error, prompt_tokens, context_tokens) from None
    except openai.APIConnectionError:
        raise UpstreamFailed("the connection to the language model's endpoint failed") from None
    except (openai.OpenAIError, ValueError, TypeError, LookupError, AttributeError) as error:
        log.warning("provider %s: the answer cannot be read: %s", provider, type(error).__name__)
        raise UpstreamFailed("the language model's endpoint sent an error or an answer that cannot be read") from None


def _refusal(error: openai.APIStatusError, prompt_tokens: int, context_tokens: int) -> QuintetError:
    status = error.status_code
    if status in (400, 413, 422):
        return _bad_request(error, prompt_tokens, context_tokens)
    if status in (401, 403, 404) or str(error.code) == "insufficient_quota":
        return UpstreamRefused(
            f"the language model's endpoint refuses the server (HTTP {status}): the server's configuration of address, "
            "key or model is wrong",
            retry_after=_CONFIGURATION_RETRY_SECONDS,
        )
    if status == 429:
        return UpstreamFull("the language model's endpoint is overloaded", retry_after=_retry_after(error))
    if status in (408, 409, 425) or status >= 500:
        return UpstreamFailed(f"the language model's endpoint failed (HTTP {status})")
    return UpstreamRejected(f"the language model's endpoint rejects the request (HTTP {status})")


def _bad_request(error: openai.APIStatusError, prompt_tokens: int, context_tokens: int) -> QuintetError:
    if _CONTEXT_CODES & {str(error.code), str(error.type)}:
        tokens = error.body.get("n_prompt_tokens") if isinstance(error.body, dict) else None
        if isinstance(tokens, int):
            return PromptTooLong(tokens, context_tokens)
        return PromptTooLong(prompt_tokens, context_tokens, exact=False)
    if str(error.code) == "content_filter":
        return InvalidRequest([Violation("messages", "the language model's endpoint refuses their content")])
    if field := _CALLERS_PARAMETERS.get(str(error.param)):
        return InvalidRequest([Violation(field, "the language model's endpoint does not accept this value")])
    return UpstreamRejected(f"the language model's endpoint rejects the request (HTTP {error.status_code})")


def _retry_after(error: openai.APIStatusError) -> float:
    """Seconds from the headers. A date there is rare and is ignored."""
    headers = error.response.headers
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        if math.isfinite(seconds):
            return min(max(seconds, 0.5), 300.0)
    return _DEFAULT_RETRY_SECONDS
