"""A route: upstreams in an order, of which the next is asked if one fails before its first token."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from server.domain.chat import ChatDone, ChatOptions, ChatStarted, Message, TextDelta
from server.domain.context import charge
from server.domain.errors import (
    LedgerUnavailable,
    OptionRefused,
    PromptTooLong,
    QuintetError,
    Unavailable,
    UpstreamBrokeOff,
    UpstreamFailed,
    UpstreamFull,
    UpstreamQuotaExhausted,
    UpstreamRefused,
    UpstreamRejected,
    UpstreamTimeout,
)
from server.domain.models import ModelIdentity
from server.domain.money import Cost
from server.domain.usage import Ledger
from server.usage.accounting import Accounting

if TYPE_CHECKING:  # it imports the SDK, which takes a second
    from server.tasks.chat.openai_upstream import Upstream

_ATTEMPTS = 3  # of one upstream
# An upstream that is full is waited for if the Retry-After it sends is at most this long, and less if another one can
# be asked; otherwise the caller gets the delay.
_FULL_SECONDS, _FULL_SECONDS_BEFORE_NEXT = 5.0, 1.0
_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.25, 4.0
_MAY_SUCCEED_ELSEWHERE = (PromptTooLong, OptionRefused, Unavailable, UpstreamQuotaExhausted, UpstreamTimeout)


class Router:
    """Implements `ChatModel`. A prompt that does not fit one upstream's context goes to the next, so the route's
    context is the largest. Nothing is retried once text has come.

    A request is paid for, so the same upstream is asked again only if it did not get the request or refused it: up to
    three times if the connection cannot be made or it answers HTTP 500 or 503; after 429, if the provider's delay is
    short; all within the caller's deadline. If it broke off or stayed silent after it had the request, the next one is
    asked, and the call is charged for both. What is the caller's fault is not retried.
    """

    def __init__(self, name: str, upstreams: Sequence["Upstream"], ledger: Ledger, missing: str = "") -> None:
        """`missing` says which other upstreams the route should have, and why it does not."""
        self._upstreams = tuple(upstreams)
        self._ledger = ledger
        self._missing = missing
        first = upstreams[0].description
        context = max(upstream.description.max_input_tokens for upstream in upstreams)
        self.description = replace(first, max_input_tokens=context)
        if len(upstreams) > 1:
            engine = f"route: {', '.join(upstream.name for upstream in upstreams)}"
            self.description = replace(
                self.description, identity=ModelIdentity(name, "", ""), engine=engine, size_bytes=0, create_time=None
            )

    @property
    def is_available(self) -> bool:
        """Whether an upstream can be asked now."""
        return not all(upstream.trouble() for upstream in self._upstreams)

    def remark(self) -> str:
        """Which upstreams cannot be asked now, and why; empty if all can."""
        troubles = (*(upstream.trouble() for upstream in self._upstreams), self._missing)
        return "; ".join(dict.fromkeys(filter(None, troubles)))

    async def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """As the first upstream counts."""
        return await self._upstreams[0].prompt_tokens(messages)

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Cost:
        """The most expensive upstream's."""
        return _most(upstream.estimate(messages, options) for upstream in self._upstreams)

    async def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[TextDelta | ChatDone, None]:
        """Deltas, then one ChatDone once the call is settled. Closing it stops the upstream, and then settles. An
        upstream that sends more than was asked for is stopped, too: the answer ends at its limit.

        Raises LedgerUnavailable and RequestIdReused before an upstream is asked, and the errors of upstreams; if all
        failed, the one with the shortest delay.
        """
        failures: list[QuintetError] = []
        done: ChatDone | None = None
        with Accounting(self._ledger, self.description.identity.name, messages, options, deadline) as accounting:
            for upstream in self._upstreams:
                for attempt in range(_ATTEMPTS):
                    has_answered = False
                    try:
                        async with aclosing(upstream.stream(messages, options, deadline=deadline)) as events:
                            async for event in events:
                                if isinstance(event, ChatStarted):
                                    await accounting.start(event, self._reserved(event, options))
                                    continue
                                has_answered = True
                                if isinstance(event, ChatDone):
                                    done = event
                                elif text := accounting.add(event.text):
                                    yield TextDelta(text)
                                if accounting.is_over:
                                    break
                        for last in await accounting.finish(done):
                            yield last
                        return
                    except LedgerUnavailable:
                        raise
                    except _MAY_SUCCEED_ELSEWHERE as error:
                        if has_answered or time.monotonic() >= deadline:
                            raise
                        failure = error
                    may_repeat = not isinstance(failure, UpstreamBrokeOff) or upstream.is_idempotent
                    delay = _delay(failure, attempt, deadline, is_last=upstream is self._upstreams[-1])
                    if delay is None or not may_repeat:
                        accounting.leave(failure)
                        failures.append(failure)
                        break
                    charge(upstream=delay)
                    await asyncio.sleep(delay)
            raise min(failures, key=_rank)

    def _reserved(self, started: ChatStarted, options: ChatOptions) -> Cost:
        """What the call may cost with any upstream, now that the prompt's tokens are counted."""
        tokens = started.prompt_tokens, options.max_output_tokens
        return _most(upstream.cost(*tokens) for upstream in self._upstreams)


def _most(costs: Iterable[Cost]) -> Cost:
    found = list(costs)
    return Cost(max(cost.tokens for cost in found), max(cost.micros for cost in found))


def full_jitter(attempt: int) -> float:
    """Seconds to wait after attempt 0, 1, ...: random up to a bound that doubles, so that callers that failed together
    do not retry together.
    """
    return random.uniform(0.0, min(_LONGEST_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2.0 ** min(attempt, 16)))


def _delay(failure: QuintetError, attempt: int, deadline: float, *, is_last: bool) -> float | None:
    """Seconds until the same upstream is asked again; None if it is not. `is_last`: there is no other one."""
    delay = full_jitter(attempt)
    longest = _FULL_SECONDS if is_last else _FULL_SECONDS_BEFORE_NEXT
    match failure:
        case UpstreamRefused() | UpstreamRejected():
            return None
        case UpstreamFull(retry_after=wait) if wait <= longest:
            delay += wait
        case UpstreamFailed():
            pass
        case _:
            return None
    is_over = attempt + 1 == _ATTEMPTS or time.monotonic() + delay >= deadline
    return None if is_over else delay


def _rank(failure: QuintetError) -> tuple[int, float]:
    """The least is reported when all failed. What one upstream does not take says nothing about the others."""
    match failure:
        case Unavailable():
            return 0, failure.retry_after
        case PromptTooLong():
            return 3, -failure.context_tokens
        case OptionRefused():
            return 2, 0.0
    return 1, 0.0
