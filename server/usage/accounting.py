"""The accounting of one call to a language model: its entry is opened before an upstream is asked, and settled once.

What the caller gets and is charged stays within what was reserved, whatever an endpoint sends and reports.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import astuple, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from server.domain.chat import ChatDone, ChatOptions, ChatStarted, FinishReason, Message, TextDelta
from server.domain.context import current
from server.domain.errors import DeadlineExceeded, QuintetError, UpstreamBrokeOff, UpstreamTimeout
from server.domain.models import ModelIdentity
from server.domain.money import Cost
from server.domain.usage import Entry, Ledger, Opened, Outcome, Usage, UsageSource, new_id
from server.usage.output_meter import OutputMeter, is_believable

log = logging.getLogger(__name__)
_SETTLE_SECONDS = 2.0  # longest wait for the ledger at the end of an answer, which is then settled later
_EARLY_SECONDS = 0.05  # a client's clock may reach the deadline this much earlier than ours
# Failures of an upstream that had the request and may have computed something. One that refuses it has not.
_HAD_THE_REQUEST = (UpstreamBrokeOff, UpstreamTimeout, TimeoutError)


class Accounting:
    """The current call's, around the stream of its answer: leaving the block by an exception settles what was used.

    `model` is the name that the call asked for.
    """

    def __init__(
        self, ledger: Ledger, model: str, messages: Sequence[Message], options: ChatOptions, deadline: float
    ) -> None:
        self._call = current()
        self._ledger = ledger
        self._request = (model, messages, options)
        self._deadline = deadline
        self._limit = options.max_output_tokens
        self._running: tuple[Opened, ChatStarted, OutputMeter] | None = None  # once an upstream is asked: the latest
        self._is_asked = False  # whether that one may still answer
        self._left = Usage(0, 0, UsageSource.ESTIMATED)  # what upstreams that were left may have computed
        self._is_settled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None or self._running is None or self._is_settled:
            return
        opened, started, meter = self._running
        if isinstance(error, Exception):
            timed_out = isinstance(error, UpstreamTimeout | DeadlineExceeded | TimeoutError)
            outcome = Outcome.DEADLINE if timed_out and self._is_late() else Outcome.FAILED
            has_consumed = meter.code_points > 0 or isinstance(error, _HAD_THE_REQUEST)
        else:  # the call was cancelled, or the stream closed
            outcome = Outcome.DEADLINE if self._is_late() else Outcome.CANCELLED
            has_consumed = True
        nothing = started.prices.usage(0, 0, UsageSource.ESTIMATED)
        used = _own_count(started, meter) if has_consumed and self._is_asked else nothing
        self._settle(opened, started, self._with_left(used), outcome, started.model)

    async def start(self, started: ChatStarted, reserved: Cost) -> None:
        """An upstream is about to be asked. The first one opens the entry; `reserved` is what the call may cost.

        Raises LedgerUnavailable and RequestIdReused.
        """
        opened = self._running[0] if self._running else await self._ledger.open(self._entry(started, reserved))
        self._running = opened, started, OutputMeter(started.count, self._limit)
        self._is_asked = True

    def leave(self, failure: QuintetError) -> None:
        """The upstream failed before its first token and is not asked again. What it may have computed is charged."""
        if self._running and self._is_asked and isinstance(failure, _HAD_THE_REQUEST):
            self._left = self._with_left(_own_count(*self._running[1:]))
        self._is_asked = False

    def add(self, text: str) -> str:
        """Count the next text of the answer; return the part of it that may be sent now."""
        assert self._running is not None, "an upstream sends ChatStarted first"
        return self._running[2].take(text)

    @property
    def is_over(self) -> bool:
        """Whether the endpoint sends more than was asked for, so that its stream is to be closed."""
        return self._running is not None and self._running[2].is_over

    async def finish(self, done: ChatDone | None) -> Sequence[TextDelta | ChatDone]:
        """Settle an answer that is complete, or without `done` one that is over; return what is still to be sent.

        Text that was held back is sent if the endpoint, by its own count, has kept the limit.
        """
        assert self._running is not None, "an upstream sends ChatStarted first"
        _, started, meter = self._running
        if done is None:
            done = ChatDone(FinishReason.LENGTH, _own_count(started, meter), started.model)
        elif done.usage.source is UsageSource.PROVIDER:
            if not is_believable(done.usage, started.prompt_tokens, meter.code_points, self._limit):
                done = replace(done, usage=_own_count(started, meter))
            elif done.usage.completion_tokens > self._limit:
                reserved = started.prices.usage(done.usage.prompt_tokens, self._limit, UsageSource.ESTIMATED)
                done = replace(done, usage=reserved)
        held = meter.held
        if held and done.usage.source is not UsageSource.PROVIDER:
            done, held = replace(done, finish_reason=FinishReason.LENGTH, usage=_own_count(started, meter)), ""
        done = replace(done, usage=await self._report(done))
        return [TextDelta(held), done] if held else [done]

    async def _report(self, done: ChatDone) -> Usage:
        """Settle an answer, waiting a moment for the disk; return the usage to report."""
        assert self._running is not None
        opened, started, _ = self._running
        used = self._with_left(done.usage)
        written = self._settle(opened, started, used, Outcome.OK, done.model)
        if self._ledger.away:
            return opened.earlier or used
        try:
            async with asyncio.timeout(max(0.0, min(_SETTLE_SECONDS, self._deadline - time.monotonic()))):
                await written
        except TimeoutError:
            log.warning("the ledger is slow; an answer ends before it is settled")
        return opened.earlier or used

    def _entry(self, started: ChatStarted, reserved: Cost) -> Entry:
        call, prices, now = self._call, started.prices, datetime.now(UTC)
        service, _, method = call.method.removeprefix("/").rpartition("/")
        return Entry(
            id=new_id(now),
            tenant=call.caller.tenant,
            key_id=call.caller.key_id,
            request_id=call.request_id,
            request_digest=_digest(call.method, *self._request),
            brought_id=call.brought_id,
            service=service.rpartition(".")[2],
            method=method,
            model=self._request[0],
            model_digest=started.model.digest,
            provider=started.provider,
            own_prompt_tokens=started.prompt_tokens,
            own_prompt_micros=prices.cost_micros(started.prompt_tokens, 0),
            reserved_tokens=reserved.tokens,
            reserved_micros=reserved.micros,
            price_version=prices.version,
            started=now,
            usage=Usage(0, 0, UsageSource.UNAVAILABLE, currency=prices.currency),
        )

    def _settle(
        self, opened: Opened, started: ChatStarted, used: Usage, outcome: Outcome, model: ModelIdentity
    ) -> asyncio.Future[bool]:
        self._is_settled = True
        if opened.earlier is None:  # a repeated request was charged before
            self._call.spent_tokens += used.total_tokens
            self._call.spent_micros += used.cost_micros
        entry = opened.entry.settled(
            used,
            outcome,
            provider=started.provider,
            model=replace(model, version=_printable(model.version)),
            price_version=started.prices.version,
        )
        return self._ledger.settle(entry)

    def _with_left(self, used: Usage) -> Usage:
        left = self._left
        if not left.total_tokens:
            return used
        return Usage(
            left.prompt_tokens + used.prompt_tokens,
            left.completion_tokens + used.completion_tokens,
            UsageSource.ESTIMATED,
            left.cost_micros + used.cost_micros,
            used.currency if used.cost_micros else left.currency,
            left.cached_tokens + used.cached_tokens,
        )

    def _is_late(self) -> bool:
        return time.monotonic() >= self._deadline - _EARLY_SECONDS


def _own_count(started: ChatStarted, meter: OutputMeter) -> Usage:
    return started.prices.usage(started.prompt_tokens, meter.tokens, UsageSource.ESTIMATED)


def _printable(text: str) -> str:
    """A provider's name for its version, limited to what every database stores."""
    return "".join(character for character in text[:128] if character.isprintable())


def _digest(method: str, model: str, messages: Sequence[Message], options: ChatOptions) -> str:
    """Differs for different requests; the texts themselves are not kept."""
    asked = [options.max_output_tokens, options.temperature, options.top_p, options.stop, options.seed]
    whole = [method, model, [astuple(message) for message in messages], asked]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()
