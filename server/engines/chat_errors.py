"""What the openai SDK raises, in the words of the domain.

The texts of foreign exceptions may hold prompts and keys, so they go nowhere, not even to the log.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import openai

from server.errors import InvalidRequest, QuintetError, ServerOverloaded, UpstreamFailed, UpstreamTimeout, Violation

log = logging.getLogger(__name__)

_CONTEXT_CODES = {"context_length_exceeded", "exceed_context_size_error"}
# Parameters that callers set, with their names in the contract.
_CALLERS_PARAMETERS = {
    "max_completion_tokens": "max_output_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "stop": "stop",
    "seed": "seed",
}
_DEFAULT_RETRY_SECONDS = 5.0


@contextmanager
def translated(context_tokens: int) -> Iterator[None]:
    """Raises ours for theirs; `context_tokens` is the model's context, for the message when a prompt is over it."""
    try:
        yield
    except (TimeoutError, openai.APITimeoutError):
        raise UpstreamTimeout("the language model's endpoint did not answer in time") from None
    except openai.APIStatusError as error:
        log.warning("language model: HTTP %d, request id %s", error.status_code, error.request_id)
        raise _refusal(error, context_tokens) from None
    except openai.APIConnectionError:
        raise UpstreamFailed("the connection to the language model's endpoint failed") from None
    except (openai.OpenAIError, ValueError, TypeError, LookupError, AttributeError) as error:
        log.warning("language model: the answer cannot be read: %s", type(error).__name__)
        raise UpstreamFailed("the language model's endpoint sent an error or nonsense") from None


def _refusal(error: openai.APIStatusError, context_tokens: int) -> QuintetError:
    match error.status_code:
        case 400:
            return _bad_request(error, context_tokens)
        case 401 | 403 | 404:
            return UpstreamFailed(
                f"the language model's endpoint refuses the server (HTTP {error.status_code}): the server's "
                "configuration of address, key or model is at fault",
                retry_after=60.0,
            )
        case 429:
            return ServerOverloaded("the language model's endpoint is full", retry_after=_retry_after(error))
        case status:
            return UpstreamFailed(f"the language model's endpoint failed (HTTP {status})")


def _bad_request(error: openai.APIStatusError, context_tokens: int) -> QuintetError:
    if _CONTEXT_CODES & {str(error.code), str(error.type)}:
        tokens = error.body.get("n_prompt_tokens") if isinstance(error.body, dict) else None
        has = f"has {tokens} tokens" if isinstance(tokens, int) else "has too many tokens"
        return InvalidRequest([Violation("messages", f"{has}; the model's context is {context_tokens}")])
    if field := _CALLERS_PARAMETERS.get(str(error.param)):
        return InvalidRequest([Violation(field, "the language model's endpoint does not accept this value")])
    return UpstreamFailed("the language model's endpoint rejects the request (HTTP 400)")


def _retry_after(error: openai.APIStatusError) -> float:
    """Seconds of the Retry-After header; a date there is rare and counts as none."""
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return _DEFAULT_RETRY_SECONDS
    return min(max(seconds, 0.5), 300.0) if math.isfinite(seconds) else _DEFAULT_RETRY_SECONDS
