"""Several providers in a row: the next is asked where one fails before its first token."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from server.domain.chat import ChatDone, ChatOptions, ChatProvider, ChatStarted, Message, TextDelta
from server.domain.context import charge
from server.domain.errors import (
    PromptTooLong,
    QuintetError,
    Unavailable,
    UpstreamFailed,
    UpstreamFull,
    UpstreamRefused,
    UpstreamRejected,
    UpstreamTimeout,
)
from server.domain.models import ModelIdentity
from server.domain.money import Cost
from server.tasks.chat.backoff import full_jitter
from server.tasks.chat.circuit_breaker import CircuitBreaker, CircuitState
from server.tasks.chat.statistics import UpstreamStatistics

Events = AsyncGenerator[ChatStarted | TextDelta | ChatDone, None]

_ATTEMPTS = 3  # of one provider
# A provider that is full is waited for if it says that it takes no longer than this, and less if another one can be
# asked; else the caller hears how long it takes.
_PATIENCE_SECONDS, _PATIENCE_BEFORE_NEXT = 5.0, 1.0
_ELSEWHERE = (PromptTooLong, Unavailable, UpstreamTimeout)  # what another provider may be better at


class Counting(ChatProvider, Protocol):
    """A provider that counts its generations."""

    generations: UpstreamStatistics


@dataclass(frozen=True, slots=True)
class Upstream:
    """A model of a provider, and the breaker that all models of this provider share."""

    chat: Counting
    breaker: CircuitBreaker
    is_ready: Callable[[], bool] = lambda: True

    @property
    def name(self) -> str:
        """What it is called where nothing else is said."""
        return self.chat.description.identity.name

    @property
    def generations(self) -> UpstreamStatistics:
        """Those of this model."""
        return self.chat.generations

    def trouble(self) -> str:
        """Why it is not asked now; empty if it is."""
        if not self.is_ready():
            return f'model "{self.name}" is being started again'
        if self.breaker.state is CircuitState.OPEN:
            return f'provider "{self.breaker.name}" is not asked for a while: it failed again and again'
        return ""

    async def stream(self, messages: Sequence[Message], options: ChatOptions, *, deadline: float) -> Events:
        """What the provider sends, once; the breaker is told how it went. Raises UpstreamRefused if it is open."""
        ticket = self.breaker.enter()
        if ticket is None:
            raise UpstreamRefused(
                f'provider "{self.breaker.name}" failed again and again, so it is not asked for a while',
                retry_after=max(1.0, self.breaker.seconds_left),
            )
        answers = False
        try:
            async with aclosing(self.chat.stream(messages, options, deadline=deadline)) as events:
                async for event in events:
                    if not answers and not isinstance(event, ChatStarted):
                        answers = True
                        self.breaker.succeeded(ticket)
                    yield event
        except (UpstreamFull, UpstreamRejected):
            self.breaker.succeeded(ticket)
            raise
        except (UpstreamFailed, UpstreamTimeout):
            if time.monotonic() < deadline:  # else it was the caller who had no patience
                self.breaker.failed(ticket)
            raise
        finally:
            self.breaker.gave_up(ticket)


class Router:
    """Implements `ChatProvider`. A prompt is refused if it fits into the context of none of them; those that it does
    not fit are passed over, so the route's context is the largest. Nobody is asked again once text has come.

    Connections that failed and HTTP 5xx are tried three times, 429 after the delay that the provider names if it is
    short, all within the caller's deadline. What is the caller's fault is not tried again.
    """

    def __init__(self, name: str, legs: Sequence[Upstream], missing: str = "") -> None:
        """`missing` says which others there should be."""
        self._legs = tuple(legs)
        self._missing = missing
        first = legs[0].chat.description
        context = max(leg.chat.description.max_input_tokens for leg in legs)
        self.description = replace(first, max_input_tokens=context)
        if len(legs) > 1:
            engine = f"route: {', '.join(leg.name for leg in legs)}"
            self.description = replace(
                self.description, identity=ModelIdentity(name, "", ""), engine=engine, size_bytes=0, created=None
            )

    @property
    def is_available(self) -> bool:
        """Whether somebody can be asked now."""
        return not all(leg.trouble() for leg in self._legs)

    def remark(self) -> str:
        """Who cannot be asked now, and why; empty if all can."""
        troubles = (*(leg.trouble() for leg in self._legs), self._missing)
        return "; ".join(dict.fromkeys(filter(None, troubles)))

    async def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Of the first provider's model."""
        return await self._legs[0].chat.prompt_tokens(messages)

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Cost:
        """Of the most expensive."""
        found = [leg.chat.estimate(messages, options) for leg in self._legs]
        return Cost(max(each.tokens for each in found), max(each.micros for each in found))

    async def stream(self, messages: Sequence[Message], options: ChatOptions, *, deadline: float) -> Events:
        """ChatStarted of whoever is asked, deltas, one ChatDone. Closing it stops whoever is asked.

        Raises what the providers raise; if all failed, what is over soonest.
        """
        failures: list[QuintetError] = []
        for leg in self._legs:
            started = False
            for attempt in range(_ATTEMPTS):
                begun = False
                try:
                    async with aclosing(leg.stream(messages, options, deadline=deadline)) as events:
                        async for event in events:
                            begun = begun or not isinstance(event, ChatStarted)
                            if begun or not started:
                                started = True
                                yield event
                    return
                except _ELSEWHERE as error:
                    if begun or time.monotonic() >= deadline:
                        raise
                    failure = error
                delay = _delay(failure, attempt, deadline, is_last=leg is self._legs[-1])
                if delay is None:
                    failures.append(failure)
                    break
                charge(upstream=delay)
                await asyncio.sleep(delay)
        raise _soonest(failures)


def _delay(failure: QuintetError, attempt: int, deadline: float, *, is_last: bool) -> float | None:
    """Seconds until the same provider is asked again; None if it is not. `is_last`: there is no other one."""
    delay, patience = full_jitter(attempt), _PATIENCE_SECONDS if is_last else _PATIENCE_BEFORE_NEXT
    match failure:
        case UpstreamRefused() | UpstreamRejected():
            return None
        case UpstreamFull(retry_after=wait) if wait <= patience:
            delay += wait
        case UpstreamFailed():
            pass
        case _:
            return None
    is_over = attempt + 1 == _ATTEMPTS or time.monotonic() + delay >= deadline
    return None if is_over else delay


def _soonest(failures: Sequence[QuintetError]) -> QuintetError:
    """What the caller is told when all have failed. A prompt that is too long for some says nothing of the others."""
    waits = [failure for failure in failures if isinstance(failure, Unavailable)]
    if waits:
        return min(waits, key=lambda failure: failure.retry_after)
    others = [failure for failure in failures if not isinstance(failure, PromptTooLong)]
    longest = [failure for failure in failures if isinstance(failure, PromptTooLong)]
    return others[0] if others else max(longest, key=lambda failure: failure.context_tokens)
