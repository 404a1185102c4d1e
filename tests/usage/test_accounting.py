"""The accounting of calls: however a stream ends, there is one entry, and it has what was consumed."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import cast

import pytest

from server.domain import context
from server.domain.access import Caller
from server.domain.chat import (
    ChatDone,
    ChatOptions,
    ChatStarted,
    FinishReason,
    Message,
    Prices,
    TextDelta,
)
from server.domain.context import Context
from server.domain.errors import (
    InvalidRequest,
    LedgerUnavailable,
    QuintetError,
    UpstreamBrokeOff,
    UpstreamFailed,
    UpstreamRejected,
    UpstreamTimeout,
    Violation,
)
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.domain.money import Cost
from server.domain.usage import Entry, Outcome, Usage, UsageSource
from server.tasks.chat.openai_upstream import Upstream
from server.tasks.chat.router import Router
from server.tasks.chat.tokens import TokenCounter
from server.usage.output_meter import OutputMeter
from tests.chatting import chatting, client_for, events_of
from tests.fakes import MemoryLedger, OpenAIServer, Reply
from tests.waiting import until

MESSAGES = [Message("user", "Hello there!")]
OPTIONS = ChatOptions(max_output_tokens=20)
ROUTE = ModelDescription(ModelIdentity("fast", "", ""), ModelTask.CHAT, "openai", max_input_tokens=4096)
GPT, LOCAL = ModelIdentity("gpt", "gpt-2026", ""), ModelIdentity("qwen", "1-abc", "sha256:1")
PRICES = Prices(1_000_000, 2_000_000, 500_000, "EUR", "2026-11")  # a millionth a token, and two
STARTED = ChatStarted("cloud", GPT, PRICES, 10, len)
REPORTED = Usage(12, 5, UsageSource.PROVIDER, 8 + 4 // 2 + 5 * 2, "EUR", cached_tokens=4)
DONE = ChatDone(FinishReason.STOP, REPORTED, GPT)
Event = ChatStarted | TextDelta | ChatDone


class Script:
    """Stands in for an upstream: events in their order, an exception raised, or a wait without end."""

    def __init__(self, *events: Event | Exception | None, before: Callable[[], None] = lambda: None) -> None:
        self.description = ROUTE
        self.name = "fast"
        self.is_idempotent = False
        self.closed = False
        self.waits = asyncio.Event()
        self._events = events
        self._before = before

    async def prompt_tokens(self, messages: Sequence[Message]) -> int:
        return 10

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Cost:
        return Cost(30, 50)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> Cost:
        return Cost(prompt_tokens + completion_tokens, PRICES.cost_micros(prompt_tokens, completion_tokens))

    async def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[Event, None]:
        try:
            for event in self._events:
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    self.waits.set()
                    await asyncio.Event().wait()
                else:
                    yield event
                    if isinstance(event, ChatStarted):
                        self._before()
                        await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            self.closed = True


def accounted(upstream: Script | Upstream, ledger: MemoryLedger) -> Router:
    return Router("fast", [cast(Upstream, upstream)], ledger)


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def call() -> Iterator[Context]:
    caller = Caller("acme", "k1")
    call = Context("/quintet.v1.ChatService/Chat", "r-1", time.monotonic() + 60, caller=caller, brought_id=True)
    token = context._current.set(call)
    yield call
    context._current.reset(token)


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


async def collect(model: Router, deadline: float | None = None) -> list[TextDelta | ChatDone]:
    return [event async for event in model.stream(MESSAGES, OPTIONS, deadline=deadline or soon())]


def only(ledger: MemoryLedger) -> Entry:
    """The one entry that there is, settled."""
    assert len(ledger.opened) == 1
    assert ledger.settled_twice == 0
    (entry,) = ledger.settled.values()
    return entry


async def test_an_answer(ledger: MemoryLedger, call: Context) -> None:
    def is_open() -> None:
        assert len(ledger.opened) == 1, "before the provider is asked"

    provider = Script(STARTED, TextDelta("Hi"), TextDelta("!"), DONE, before=is_open)
    events = await collect(accounted(provider, ledger))
    assert events == [
        TextDelta("Hi"),
        TextDelta("!"),
        DONE,
    ]
    (begun,) = ledger.opened.values()
    assert (begun.tenant, begun.key_id, begun.request_id, begun.brought_id) == ("acme", "k1", "r-1", True)
    assert (begun.service, begun.method, begun.model, begun.provider) == ("ChatService", "Chat", "fast", "cloud")
    assert (begun.own_prompt_tokens, begun.own_prompt_micros) == (10, 10)
    assert (begun.reserved_tokens, begun.reserved_micros) == (30, 50)
    ended = only(ledger)
    assert ended.usage == REPORTED
    assert (ended.outcome, ended.provider, ended.model, ended.model_version) == (Outcome.OK, "cloud", "gpt", "gpt-2026")
    assert ended.price_version == "2026-11"
    assert (call.spent_tokens, call.spent_micros) == (17, REPORTED.cost_micros)


async def test_it_is_settled_before_its_end_is_sent(ledger: MemoryLedger, call: Context) -> None:
    async for event in accounted(Script(STARTED, DONE), ledger).stream(MESSAGES, OPTIONS, deadline=soon()):
        assert isinstance(event, ChatDone)
        assert only(ledger).outcome is Outcome.OK


async def test_another_provider_is_asked_instead(ledger: MemoryLedger, call: Context) -> None:
    free = ChatStarted("embedded", LOCAL, Prices(version="free"), 11, len)
    done = ChatDone(FinishReason.STOP, Usage(13, 2, UsageSource.PROVIDER), LOCAL)
    await collect(accounted(Script(STARTED, free, TextDelta("Hi"), done), ledger))
    ended = only(ledger)
    assert (ended.provider, ended.model, ended.model_digest) == ("embedded", "qwen", "sha256:1")
    assert (ended.price_version, ended.usage.cost_micros, ended.usage.total_tokens) == ("free", 0, 15)


REFUSALS = [UpstreamFailed("HTTP 500"), InvalidRequest([Violation("messages", "too long")])]


@pytest.mark.parametrize(
    ("events", "tokens"),
    [
        *(((STARTED, error), 0) for error in REFUSALS),
        ((STARTED, TextDelta(""), UpstreamFailed("cut")), 0),
        ((STARTED, UpstreamTimeout("slow")), 10),
        ((STARTED, UpstreamBrokeOff("it had the request")), 10),
        ((STARTED, TextDelta("four"), UpstreamFailed("cut")), 14),
        ((STARTED, TextDelta("four"), ValueError("a fault of ours")), 14),
    ],
)
async def test_failures(
    ledger: MemoryLedger, call: Context, events: tuple[Event | Exception, ...], tokens: int
) -> None:
    with pytest.raises((QuintetError, ValueError)):
        await collect(accounted(Script(*events), ledger))
    ended = only(ledger)
    assert (ended.outcome, ended.usage.source) == (Outcome.FAILED, UsageSource.ESTIMATED)
    assert ended.usage.total_tokens == call.spent_tokens == tokens


async def test_what_a_lost_upstream_may_have_computed_is_charged_beside_the_answer(
    ledger: MemoryLedger, call: Context
) -> None:
    lost = Script(STARTED, UpstreamBrokeOff("it had the request"))
    refusing = Script(STARTED, UpstreamFailed("HTTP 503"))
    upstreams = [cast(Upstream, each) for each in (lost, refusing, Script(STARTED, TextDelta("Hi"), DONE))]
    *_, done = await collect(Router("fast", upstreams, ledger))
    assert isinstance(done, ChatDone)
    assert done.usage == only(ledger).usage
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (10 + REPORTED.prompt_tokens, 5)
    assert (done.usage.cost_micros, done.usage.source) == (10 + REPORTED.cost_micros, UsageSource.ESTIMATED)
    assert call.spent_tokens == done.usage.total_tokens


async def test_what_lost_upstreams_may_have_computed_is_charged_if_all_fail(
    ledger: MemoryLedger, call: Context
) -> None:
    lost = [Script(STARTED, UpstreamBrokeOff("gone")), Script(STARTED, UpstreamTimeout("slow"))]
    upstreams = [cast(Upstream, each) for each in (*lost, Script(STARTED, UpstreamRejected("HTTP 418")))]
    with pytest.raises(UpstreamFailed):
        await collect(Router("fast", upstreams, ledger))
    assert (only(ledger).usage.total_tokens, only(ledger).outcome) == (20, Outcome.FAILED)


async def test_a_failure_before_an_upstream_is_asked_has_no_entry(ledger: MemoryLedger, call: Context) -> None:
    with pytest.raises(UpstreamFailed):
        await collect(accounted(Script(UpstreamFailed("no server")), ledger))
    assert ledger.opened == {}


async def test_nothing_is_begun_that_cannot_be_written(ledger: MemoryLedger, call: Context) -> None:
    ledger.away = True
    asked: list[bool] = []
    provider = Script(STARTED, DONE, before=lambda: asked.append(True))
    with pytest.raises(LedgerUnavailable):
        await collect(accounted(provider, ledger))
    assert provider.closed
    assert asked == []


async def test_a_slow_ledger_holds_up_no_answer_for_long(ledger: MemoryLedger, call: Context) -> None:
    ledger.slow = True
    *_, done = await collect(accounted(Script(STARTED, DONE), ledger), soon(0.2))
    assert isinstance(done, ChatDone)


async def test_leaving_a_stream(ledger: MemoryLedger, call: Context) -> None:
    provider = Script(STARTED, TextDelta("four"), None)
    async with aclosing(accounted(provider, ledger).stream(MESSAGES, OPTIONS, deadline=soon())) as events:
        await anext(events)
    assert provider.closed
    assert (only(ledger).outcome, only(ledger).usage.total_tokens) == (Outcome.CANCELLED, 14)


@pytest.mark.parametrize(("seconds", "outcome"), [(30.0, Outcome.CANCELLED), (0.0, Outcome.DEADLINE)])
async def test_cancelling_a_call(ledger: MemoryLedger, call: Context, seconds: float, outcome: Outcome) -> None:
    provider = Script(STARTED, TextDelta("four"), None)
    task = asyncio.create_task(collect(accounted(provider, ledger), soon(seconds)))
    await provider.waits.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert (only(ledger).outcome, only(ledger).usage.total_tokens) == (outcome, 14)
    assert call.spent_tokens == 14


async def test_cancelling_at_any_step(call: Context) -> None:
    """A row that was opened is always settled, once; after its answer came to its end by what the provider said."""
    seen = set()
    for steps in range(25):
        ledger = MemoryLedger()
        provider = Script(STARTED, TextDelta("four"), TextDelta("four"), DONE)

        async def slowly(model: Router) -> None:
            async for _ in model.stream(MESSAGES, OPTIONS, deadline=soon()):
                await asyncio.sleep(0)

        task = asyncio.create_task(slowly(accounted(provider, ledger)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: ledger.opened.keys() == ledger.settled.keys())  # noqa: B023
        for ended in ledger.settled.values():
            seen.add((ended.outcome, ended.usage.total_tokens))
        assert ledger.settled_twice == 0
    assert seen == {(Outcome.CANCELLED, 10), (Outcome.CANCELLED, 14), (Outcome.CANCELLED, 18), (Outcome.OK, 17)}


async def test_a_repeated_request_gets_its_first_usage(ledger: MemoryLedger, call: Context) -> None:
    ledger.earlier = Usage(9, 2, UsageSource.PROVIDER, 77, "EUR", 1)
    *_, done = await collect(accounted(Script(STARTED, TextDelta("Hi"), DONE), ledger))
    assert isinstance(done, ChatDone)
    assert done.usage == Usage(9, 2, UsageSource.PROVIDER, 77, "EUR", cached_tokens=1)
    assert (call.spent_tokens, call.spent_micros) == (0, 0)
    assert only(ledger).usage.total_tokens == 17, "what was consumed"


async def test_requests_differ_in_everything_that_is_asked(ledger: MemoryLedger, call: Context) -> None:
    model = accounted(Script(STARTED, DONE), ledger)
    asked: list[tuple[list[Message], ChatOptions]] = [
        (MESSAGES, OPTIONS),
        ([Message("system", "Hello there!")], OPTIONS),
        ([*MESSAGES, *MESSAGES], OPTIONS),
        (MESSAGES, replace(OPTIONS, seed=1)),
        (MESSAGES, replace(OPTIONS, stop=("a",))),
    ]
    for messages, options in [*asked, asked[0]]:
        await events_of(model, messages, options, deadline=soon())
    digests = [begun.request_digest for begun in ledger.opened.values()]
    assert len(set(digests)) == len(asked)
    assert digests[0] == digests[-1]


# ---------------------------------------------------------------- what an endpoint sends and reports


def reported(prompt: int, completion: int, source: UsageSource = UsageSource.PROVIDER) -> ChatDone:
    return ChatDone(FinishReason.STOP, PRICES.usage(prompt, completion, source), GPT)


async def test_an_endpoint_that_ignores_the_limit_is_cut_off(ledger: MemoryLedger, call: Context) -> None:
    provider = Script(STARTED, *[TextDelta("four")] * 100, DONE)
    *texts, done = await collect(accounted(provider, ledger))
    assert "".join(event.text for event in texts if isinstance(event, TextDelta)) == "four" * 5
    assert isinstance(done, ChatDone)
    assert done.finish_reason is FinishReason.LENGTH
    assert provider.closed
    assert only(ledger).usage == done.usage == PRICES.usage(10, 20, UsageSource.ESTIMATED)
    assert only(ledger).outcome is Outcome.OK
    assert call.spent_tokens == 30


async def test_one_huge_delta_is_cut_off(ledger: MemoryLedger, call: Context) -> None:
    events = await collect(accounted(Script(STARTED, TextDelta("x" * 10_000_000), DONE), ledger))
    assert events[0] == TextDelta("x" * 20)
    assert only(ledger).usage.completion_tokens == 20


@pytest.mark.parametrize(
    ("done", "text", "tokens", "source"),
    [
        (reported(10, 20), "x" * 30, 30, UsageSource.PROVIDER),  # its tokens are longer than ours
        (reported(10, 31), "x" * 20, 30, UsageSource.ESTIMATED),
        (reported(10, 30, UsageSource.ESTIMATED), "x" * 20, 30, UsageSource.ESTIMATED),
    ],
)
async def test_an_answer_that_is_longer_by_our_count_alone(
    ledger: MemoryLedger, call: Context, done: ChatDone, text: str, tokens: int, source: UsageSource
) -> None:
    *texts, end = await collect(accounted(Script(STARTED, *[TextDelta("x" * 10)] * 3, done), ledger))
    assert "".join(event.text for event in texts if isinstance(event, TextDelta)) == text
    assert (only(ledger).usage.total_tokens, only(ledger).usage.source) == (tokens, source)
    assert isinstance(end, ChatDone)
    assert end.finish_reason is (FinishReason.STOP if source is UsageSource.PROVIDER else FinishReason.LENGTH)


LONG = "word " * 16  # 80 tokens by the count of these tests


@pytest.mark.parametrize(
    ("prompt", "completion", "is_believed"),
    [
        (12, 20, True),
        (7, 4, True),  # a quarter of a token for 4 code points
        (0, 0, False),
        (12, 0, False),
        (12, 3, False),
        (0, 20, False),
        (100_000, 20, False),
        (12, 2**31 - 1, False),
    ],
)
async def test_usage_that_cannot_be_true_counts_as_none(
    ledger: MemoryLedger, call: Context, prompt: int, completion: int, is_believed: bool
) -> None:
    model = accounted(Script(STARTED, TextDelta(LONG), reported(prompt, completion)), ledger)
    await events_of(model, MESSAGES, ChatOptions(max_output_tokens=200), deadline=soon())
    source = UsageSource.PROVIDER if is_believed else UsageSource.ESTIMATED
    counts = (prompt, completion) if is_believed else (10, 80)
    assert only(ledger).usage == PRICES.usage(*counts, source)


async def test_an_answer_without_text_may_cost_nothing_but_its_prompt(ledger: MemoryLedger, call: Context) -> None:
    await collect(accounted(Script(STARTED, reported(12, 0)), ledger))
    assert only(ledger).usage == PRICES.usage(12, 0, UsageSource.PROVIDER)


@pytest.mark.parametrize("error", [UpstreamFailed("cut"), None])
async def test_text_that_cannot_be_counted_is_charged_all_the_same(
    ledger: MemoryLedger, call: Context, error: Exception | None
) -> None:
    started = replace(STARTED, count=TokenCounter().text)  # raises for a lone surrogate
    provider = Script(started, TextDelta("Hi \ud83d and more\0"), error)
    task = asyncio.create_task(collect(accounted(provider, ledger)))
    await until(lambda: task.done() or provider.waits.is_set())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert only(ledger).usage.completion_tokens == 4


def test_texts_are_counted_in_few_pieces_and_almost_as_a_whole() -> None:
    counter, counted = TokenCounter(), list[int]()

    def count(text: str) -> int:
        counted.append(len(text))
        return counter.text(text)

    meter = OutputMeter(count, 1000)
    text = "many words and then some more " * 130
    for start in range(0, len(text), 7):
        assert meter.take(text[start : start + 7])
    assert counter.text(text) <= meter.tokens <= 1.01 * counter.text(text)
    assert len(counted) < 50
    assert max(counted) < 3000


# ---------------------------------------------------------------- with a provider on the network


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer().running() as server:
        yield server


@pytest.fixture
async def provider(upstream: OpenAIServer) -> AsyncIterator[Upstream]:
    async with chatting(client_for(upstream), slots=64) as model:
        yield model


async def test_cancelling_stops_the_provider_within_half_a_second(
    upstream: OpenAIServer, provider: Upstream, ledger: MemoryLedger, call: Context
) -> None:
    upstream.replies = [Reply(deltas=["word "] * 1000, pause=0.02)]
    texts: list[str] = []

    async def read() -> None:
        async for event in accounted(provider, ledger).stream(MESSAGES, OPTIONS, deadline=soon()):
            assert isinstance(event, TextDelta)
            texts.append(event.text)

    task = asyncio.create_task(read())
    await until(lambda: len(texts) >= 5)
    task.cancel()
    await until(lambda: upstream.abandoned, seconds=0.5)
    await asyncio.gather(task, return_exceptions=True)
    ended = only(ledger)
    assert (ended.outcome, ended.usage.source) == (Outcome.CANCELLED, UsageSource.ESTIMATED)
    assert ended.usage.completion_tokens == TokenCounter().text("".join(texts))


async def test_many_streams_that_end_in_every_way(
    upstream: OpenAIServer, provider: Upstream, ledger: MemoryLedger, call: Context
) -> None:
    chance = random.Random(5)
    kinds = [Reply(), Reply(status=500), Reply(cut_after=2), Reply(usage=None), Reply(hang_up=True)]
    upstream.replies = [replace(chance.choice(kinds), pause=chance.random() / 50) for _ in range(400)]
    model = accounted(provider, ledger)

    async def one(patience: float) -> bool:
        try:
            async with asyncio.timeout(patience):
                await events_of(model, MESSAGES, OPTIONS, deadline=soon())
        except (TimeoutError, QuintetError):
            return False
        return True

    succeeded = await asyncio.gather(*(one(chance.choice([0.0, chance.random() / 10, 20.0])) for _ in range(200)))
    assert ledger.opened.keys() == ledger.settled.keys()
    assert ledger.settled_twice == 0
    outcomes = [ended.outcome for ended in ledger.settled.values()]
    assert outcomes.count(Outcome.OK) >= sum(succeeded) > 0
    assert {Outcome.CANCELLED, Outcome.FAILED} < set(outcomes)
    assert call.spent_tokens == sum(ended.usage.total_tokens for ended in ledger.settled.values())


async def test_an_endpoint_that_ignores_the_limit_is_disconnected(
    upstream: OpenAIServer, provider: Upstream, ledger: MemoryLedger, call: Context
) -> None:
    upstream.replies = [Reply(deltas=["word "] * 3000, pause=0.001)]
    model = accounted(provider, ledger)
    *texts, done = await events_of(model, MESSAGES, ChatOptions(max_output_tokens=100), deadline=soon())
    await until(lambda: upstream.abandoned)
    assert isinstance(done, ChatDone)
    assert done.finish_reason is FinishReason.LENGTH
    assert TokenCounter().text("".join(event.text for event in texts if isinstance(event, TextDelta))) == 100
    assert only(ledger).usage.completion_tokens == done.usage.completion_tokens == 100
