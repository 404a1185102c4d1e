"""From exceptions of the openai SDK and its HTTP client to ours. Their texts may contain prompts and keys, so they are
not even logged.
"""

import json
import logging
import math
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import anyio
import httpx2
import openai

from server.domain.errors import QuintetError, UpstreamBrokeOff, UpstreamFailed, UpstreamTimeout
from server.tasks.chat.provider_errors import Report, meaning, read_report

log = logging.getLogger(__name__)

_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
# Raised while the connection is made, and while the request is being written: the endpoint does not have all of it.
_UNSENT = (
    *(httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError, httpx2.UnsupportedProtocol),
    *(httpx2.WriteError, httpx2.WriteTimeout, httpx2.LocalProtocolError),
)
_BODY = (httpx2.RequestError, httpx2.StreamError, ssl.SSLError, anyio.EndOfStream)  # raised while an answer is read


@contextmanager
def translated(provider: str) -> Iterator[None]:
    """Translates what the block raises. UpstreamFailed means that the endpoint did not get the request or refused it;
    UpstreamBrokeOff and UpstreamTimeout that it may have computed something.
    """
    try:
        yield
    except openai.APIStatusError as error:
        log.warning("provider %s: HTTP %d, request id %s", provider, error.status_code, error.request_id)
        raise _refusal(error) from None
    except openai.APIConnectionError as error:
        raise _failed_connection(error) from None
    except TimeoutError:
        raise UpstreamTimeout("the language model's endpoint did not answer in time") from None
    except _BODY:
        raise UpstreamBrokeOff("the connection to the language model's endpoint failed during the answer") from None
    except (openai.OpenAIError, *_UNREADABLE) as error:
        log.warning("provider %s: the answer cannot be read: %s", provider, type(error).__name__)
        raise UpstreamBrokeOff("the language model's endpoint sent an answer that cannot be read") from None


def report_of(error: openai.APIStatusError) -> Report:
    """What the endpoint says of its refusal, with the delay of its headers."""
    try:
        body: object = json.loads(error.response.content)
    except (ValueError, RecursionError):
        body = error.response.text
    report = read_report(body)
    delay = _retry_after(error)
    return report if delay is None else replace(report, retry_after=delay)


def _refusal(error: openai.APIStatusError) -> QuintetError:
    return meaning(report_of(error), error.status_code)


def _failed_connection(error: openai.APIConnectionError) -> QuintetError:
    if isinstance(error.__cause__, _UNSENT):
        return UpstreamFailed("the language model's endpoint cannot be reached")
    if isinstance(error, openai.APITimeoutError):
        return UpstreamTimeout("the language model's endpoint did not answer in time")
    return UpstreamBrokeOff("the connection to the language model's endpoint failed after the request was sent")


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds from the headers. A date there is rare and is ignored."""
    headers = error.response.headers
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        if math.isfinite(seconds):
            return min(max(seconds, 0.5), 300.0)
    return None
