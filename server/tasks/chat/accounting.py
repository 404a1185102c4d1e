"""Chat whose every call has a row in the ledger: opened before a provider is asked, settled when the call has ended."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import astuple, replace
from datetime import UTC, datetime

from server.domain.chat import (
    ChatAnswer,
    ChatDone,
    ChatOptions,
    ChatProvider,
    ChatStarted,
    Message,
    TextDelta,
)
from server.domain.context import Context, current
from server.domain.errors import DeadlineExceeded, UpstreamTimeout
from server.domain.models import ModelIdentity
from server.domain.money import Cost
from server.domain.usage import Entry, Ledger, Opened, Outcome, Usage, UsageSource, new_id

log = logging.getLogger(__name__)
_SETTLE_SECONDS = 2.0  # longest wait of an answer's end for the ledger; it is settled later then
_EARLY_SECONDS = 0.05  # a client's clock may strike so much earlier than ours
_COUNT_CODE_POINTS = 8192  # of a text that are counted at once, and kept until then
_MAX_TOKENS = 2**31  # no generation has more


class AccountedChatModel:
    """Implements `ChatModel` with a `ChatProvider`. Each stream needs a current call.

    Besides what the provider raises, it raises LedgerUnavailable and RequestIdReused before the provider is asked.
    """

    def __init__(self, provider: ChatProvider, ledger: Ledger) -> None:
        self.description = provider.description
        self._provider = provider
        self._ledger = ledger

    async def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """The provider's count."""
        return await self._provider.prompt_tokens(messages)

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Cost:
        """What the answer costs at most."""
        return self._provider.estimate(messages, options)

    async def complete(self, messages: Sequence[Message], options: ChatOptions, *, deadline: float) -> ChatAnswer:
        """The stream, collected."""
        texts: list[str] = []
        async with aclosing(self.stream(messages, options, deadline=deadline)) as events:
            async for event in events:
                if isinstance(event, ChatDone):
                    return ChatAnswer("".join(texts), event)
                texts.append(event.text)
        raise AssertionError("a stream ends with ChatDone")

    async def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[TextDelta | ChatDone, None]:
        """Deltas, then one ChatDone, once it is accounted. Closing it stops the provider, and then settles."""
        account = _Account(self._ledger, current(), deadline)
        try:
            async with aclosing(self._provider.stream(messages, options, deadline=deadline)) as events:
                async for event in events:
                    match event:
                        case ChatStarted():
                            if account.opened is None:
                                model = self.description.identity
                                digest = _digest(account.call.method, model, messages, options)
                                await account.open(event, model, digest, self.estimate(messages, options))
                            account.started = event  # the generator asks the provider when its next event is wanted
                        case TextDelta(text):
                            account.add(text)
                            yield event
                        case ChatDone():
                            yield replace(event, usage=await account.finish(event))
        except BaseException as error:  # cancelling and closing, too
            account.break_off(error)
            raise


class _Account:
    """What is known of one call's consumption."""

    def __init__(self, ledger: Ledger, call: Context, deadline: float) -> None:
        self.call = call
        self.opened: Opened | None = None
        self.started: ChatStarted | None = None
        self._ledger = ledger
        self._deadline = deadline
        self._has_text = False
        self._uncounted: list[str] = []
        self._uncounted_length = 0
        self._completion_tokens = 0
        self._is_settled = False

    async def open(self, started: ChatStarted, model: ModelIdentity, digest: str, estimate: Cost) -> None:
        """Write the row. Raises LedgerUnavailable and RequestIdReused."""
        service, _, method = self.call.method.removeprefix("/").rpartition("/")
        prices = started.prices
        began = datetime.now(UTC)
        entry = Entry(
            id=new_id(began),
            tenant=self.call.caller.tenant,
            key_id=self.call.caller.key_id,
            request_id=self.call.request_id,
            request_digest=digest,
            brought_id=self.call.brought_id,
            service=service.rpartition(".")[2],
            method=method,
            model=model.name,
            model_digest=started.model.digest,
            provider=started.provider,
            own_prompt_tokens=started.prompt_tokens,
            own_prompt_micros=prices.cost_micros(started.prompt_tokens, 0),
            reserved_tokens=estimate.tokens,
            reserved_micros=estimate.micros,
            price_version=prices.version,
            started=began,
            usage=Usage(0, 0, UsageSource.UNAVAILABLE, currency=prices.currency),
        )
        self.opened = await self._ledger.open(entry)

    def add(self, text: str) -> None:
        """A piece of the answer."""
        self._has_text = self._has_text or bool(text)
        self._uncounted.append(text)
        self._uncounted_length += len(text)
        if self._uncounted_length > _COUNT_CODE_POINTS:
            self._count()

    async def finish(self, done: ChatDone) -> Usage:
        """Settle an answer that came to its end; return what its caller is told that it consumed."""
        if self.opened is None:
            raise AssertionError("a provider says that it begins")
        model, usage = done.model, done.usage
        prompt, completion, cached = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
        if _is_plausible(usage):
            used = self._usage(prompt, completion, cached, usage.source)
        else:
            log.warning("a provider reports impossible usage; our own count stands in the ledger")
            used = self._own_count()
        written = self._settle(used, Outcome.OK, model)
        try:
            async with asyncio.timeout(max(0.0, min(_SETTLE_SECONDS, self._deadline - time.monotonic()))):
                await written
        except TimeoutError:
            log.warning("the ledger is slow; an answer ends before it is settled")
        return self.opened.earlier or used

    def break_off(self, error: BaseException) -> None:
        """Settle an answer that did not come to its end."""
        if self.opened is None or self.started is None or self._is_settled:
            return
        if isinstance(error, Exception):
            late = isinstance(error, UpstreamTimeout | DeadlineExceeded | TimeoutError)
            outcome = Outcome.DEADLINE if late and self._is_late() else Outcome.FAILED
            # What refuses a request has not read it; what is slow has.
            consumed = self._has_text or isinstance(error, UpstreamTimeout | TimeoutError)
        else:
            outcome = Outcome.DEADLINE if self._is_late() else Outcome.CANCELLED
            consumed = True
        used = self._own_count() if consumed else self._usage(0, 0, 0, UsageSource.ESTIMATED)
        self._settle(used, outcome, self.started.model)

    def _settle(self, used: Usage, outcome: Outcome, model: ModelIdentity) -> asyncio.Future[bool]:
        assert self.opened is not None
        assert self.started is not None
        self._is_settled = True
        if self.opened.earlier is None:  # a repeated request was charged before
            self.call.spent_tokens += used.total_tokens
            self.call.spent_micros += used.cost_micros
        entry = self.opened.entry.settled(
            used,
            outcome,
            provider=self.started.provider,
            model=replace(model, version=_printable(model.version)),
            price_version=self.started.prices.version,
        )
        return self._ledger.settle(entry)

    def _usage(self, prompt: int, completion: int, cached: int, source: UsageSource) -> Usage:
        assert self.started is not None
        prices = self.started.prices
        cost = prices.cost_micros(prompt, completion, cached)
        return Usage(prompt, completion, source, cost, prices.currency, cached)

    def _own_count(self) -> Usage:
        assert self.started is not None
        self._count()
        return self._usage(self.started.prompt_tokens, self._completion_tokens, 0, UsageSource.ESTIMATED)

    def _count(self) -> None:
        assert self.started is not None
        self._completion_tokens += self.started.count("".join(self._uncounted)) if self._uncounted else 0
        self._uncounted, self._uncounted_length = [], 0

    def _is_late(self) -> bool:
        return time.monotonic() >= self._deadline - _EARLY_SECONDS


def _is_plausible(usage: Usage) -> bool:
    """Providers have sent null, texts, and numbers below zero."""
    numbers = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    is_whole = all(isinstance(number, int) and 0 <= number < _MAX_TOKENS for number in numbers)
    return is_whole and usage.cached_tokens <= usage.prompt_tokens


def _printable(text: str) -> str:
    """What a provider says of itself, so that every database takes it."""
    return "".join(character for character in text[:128] if character.isprintable())


def _digest(method: str, model: ModelIdentity, messages: Sequence[Message], options: ChatOptions) -> str:
    """What tells one request from another; the texts themselves are not kept."""
    whole = [method, model.name, [astuple(message) for message in messages], astuple(options)]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()
