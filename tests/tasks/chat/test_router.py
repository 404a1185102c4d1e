"""Routes against scripted servers: which upstreams are asked, how often, in which order, and what the caller gets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import dataclass

import pytest

from server.domain import context
from server.domain.chat import ChatOptions, Message, TextDelta
from server.domain.context import Context
from server.domain.errors import (
    InvalidRequest,
    PromptTooLong,
    QuintetError,
    UpstreamFailed,
    UpstreamFull,
    UpstreamRefused,
    UpstreamTimeout,
)
from server.domain.money import Cost
from server.tasks.chat import router as router_module
from server.tasks.chat.circuit_breaker import CircuitBreaker, CircuitState
from server.tasks.chat.openai_upstream import Upstream
from server.tasks.chat.router import Router
from tests.chatting import MESSAGES, chatting, client, client_for, complete, events_of, soon
from tests.fakes import MemoryLedger, OpenAIServer, Reply
from tests.waiting import until

FAILS = Reply(status=503)


@dataclass
class Side:
    """A server and its upstream."""

    server: OpenAIServer
    upstream: Upstream

    @property
    def asked(self) -> int:
        return len(self.server.requests)

    @property
    def state(self) -> CircuitState:
        return self.upstream.breaker.state


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def side(stack: AsyncExitStack, name: str, context_tokens: int = 4096, slots: int = 4) -> Side:
    server = await stack.enter_async_context(OpenAIServer().running())
    server.default = Reply(deltas=[f"from {name}"])
    breaker = CircuitBreaker(name, failures=3, open_seconds=60.0)
    upstream = await stack.enter_async_context(
        chatting(client_for(server), name, slots=slots, context_tokens=context_tokens, breaker=breaker)
    )
    return Side(server, upstream)


@pytest.fixture
async def first(stack: AsyncExitStack) -> Side:
    return await side(stack, "first")


@pytest.fixture
async def second(stack: AsyncExitStack) -> Side:
    return await side(stack, "second")


@pytest.fixture(autouse=True)
def call() -> Iterator[None]:
    token = context._current.set(Context("/quintet.v1.ChatService/Chat", "r-1", soon(60)))
    yield
    context._current.reset(token)


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def route(first: Side, second: Side, ledger: MemoryLedger) -> Router:
    return Router("both", [first.upstream, second.upstream], ledger)


def router(*upstreams: Upstream, missing: str = "") -> Router:
    return Router("one" if len(upstreams) == 1 else "both", upstreams, MemoryLedger(), missing)


def asked_first_and_last(ledger: MemoryLedger) -> tuple[str, str]:
    """The upstreams of the one call that the ledger has."""
    (opened,), (settled,) = ledger.opened.values(), ledger.settled.values()
    return opened.provider, settled.provider


async def failure(route: Router, deadline: float | None = None) -> QuintetError:
    with pytest.raises(QuintetError) as caught:
        await complete(route, deadline=deadline)
    return caught.value


async def test_the_first_is_asked(route: Router, second: Side, ledger: MemoryLedger) -> None:
    delta, _ = await events_of(route)
    assert (asked_first_and_last(ledger), delta) == (("first", "first"), TextDelta("from first"))
    assert second.asked == 0


@pytest.mark.parametrize(
    ("reply", "asked"),
    [
        (FAILS, 3),
        (Reply(status=500), 3),
        (Reply(status=502), 1),
        (Reply(hang_up=True), 1),  # it had the request
        (Reply(deltas=[], cut_after=1), 1),
        (Reply(status=429, headers={"Retry-After": "30"}), 1),
        (Reply(status=429, headers={"Retry-After-Ms": "500"}), 3),
        (Reply(status=401), 1),
        (Reply(status=418), 1),
        (Reply(status=402), 1),
        (Reply(status=429, body='{"error": {"type": "insufficient_quota"}}'), 1),
    ],
)
async def test_the_next_is_asked_before_the_first_token(
    route: Router, first: Side, second: Side, ledger: MemoryLedger, reply: Reply, asked: int
) -> None:
    first.server.default = reply
    delta, _ = await events_of(route, deadline=soon(20))
    assert asked_first_and_last(ledger) == ("first", "second")
    assert delta == TextDelta("from second")
    assert (first.asked, second.asked) == (asked, 1)


async def test_an_endpoint_that_cannot_be_reached_is_tried_three_times_and_costs_nothing(
    stack: AsyncExitStack, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []

    def short(attempt: int) -> float:
        waits.append(attempt)
        return 0.0

    monkeypatch.setattr(router_module, "full_jitter", short)
    upstream = await stack.enter_async_context(chatting(client("http://127.0.0.1:1/v1", "key")))
    assert type(await failure(Router("one", [upstream], ledger))) is UpstreamFailed
    assert waits == [0, 1, 2]
    (row,) = ledger.settled.values()
    assert row.usage.total_tokens == 0


async def test_a_deadline_that_passes_while_connecting_costs_nothing(
    stack: AsyncExitStack, ledger: MemoryLedger
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent, ExitStack() as waiting:
        for _ in range(2):  # then the queue is full, and others get no answer
            client_socket = waiting.enter_context(socket.socket())
            client_socket.setblocking(False)
            client_socket.connect_ex(silent.getsockname())
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        upstream = await stack.enter_async_context(chatting(client(address, "key")))
        assert type(await failure(Router("one", [upstream], ledger), soon(0.5))) is UpstreamFailed
    (row,) = ledger.settled.values()
    assert row.usage.total_tokens == 0


async def test_a_try_later_the_same_answers(route: Router, first: Side, second: Side) -> None:
    first.server.replies = [FAILS, FAILS]
    delta, _ = await events_of(route)
    assert delta == TextDelta("from first")
    assert (first.asked, second.asked, first.state) == (3, 0, CircuitState.CLOSED)


async def test_nothing_is_retried_after_the_first_token(route: Router, first: Side, second: Side) -> None:
    first.server.replies = [Reply(cut_after=2, pause=0.01)]
    texts: list[str] = []

    async def read() -> None:
        async for event in route.stream(MESSAGES, ChatOptions(), deadline=soon()):
            texts.extend([event.text] if isinstance(event, TextDelta) else [])

    with pytest.raises(UpstreamFailed):
        await read()
    assert (texts, first.asked, second.asked) == (["Hello"], 1, 0)


async def test_the_callers_fault_is_tried_once(route: Router, first: Side, second: Side) -> None:
    first.server.replies = [Reply(status=400, body='{"error": {"code": "content_filter"}}')]
    assert isinstance(await failure(route), InvalidRequest)
    assert (first.asked, second.asked) == (1, 0)


async def test_silence_leads_to_the_next(stack: AsyncExitStack, second: Side) -> None:
    silent = await stack.enter_async_context(OpenAIServer().running())
    silent.default = Reply(delay=60)
    upstream = await stack.enter_async_context(chatting(client_for(silent), token_seconds=0.1))
    assert (await complete(router(upstream, second.upstream))).text == "from second"
    assert len(silent.requests) == 1
    await until(lambda: silent.abandoned == 1)


async def test_a_caller_without_patience_is_no_failure_of_the_provider(first: Side) -> None:
    first.server.default = Reply(delay=60)
    for _ in range(3):
        assert isinstance(await failure(router(first.upstream), deadline=soon(0.05)), UpstreamTimeout)
    assert first.state is CircuitState.CLOSED


async def test_a_try_that_would_be_too_late_is_not_made(first: Side) -> None:
    first.server.default = Reply(status=429, headers={"Retry-After": "4"})
    error = await failure(router(first.upstream), deadline=soon(3))
    assert isinstance(error, UpstreamFull)
    assert (error.retry_after, first.asked) == (4.0, 1)


async def test_the_breaker_opens_probes_and_closes(stack: AsyncExitStack, second: Side) -> None:
    now = [0.0]
    first = await side(stack, "first")
    first.upstream.breaker = breaker = CircuitBreaker("first", failures=3, open_seconds=10.0, clock=lambda: now[0])
    route = router(first.upstream, second.upstream)
    first.server.default = FAILS
    await complete(route)
    assert (breaker.state, first.asked) == (CircuitState.OPEN, 3)
    assert (await complete(route)).text == "from second"
    assert first.asked == 3
    assert route.is_available
    assert route.remark() == 'provider "first" is not asked for a while, because it failed repeatedly'

    now[0] = 10.0
    await complete(route)
    assert (breaker.state, first.asked) == (CircuitState.OPEN, 4)

    now[0] = 20.0
    first.server.default = Reply(deltas=["back", " again"], pause=0.05)
    async with aclosing(route.stream(MESSAGES, ChatOptions(), deadline=soon())) as events:
        probe = asyncio.create_task(anext(events))
        await until(lambda: first.asked == 5)
        assert (await complete(route)).text == "from second"  # one probe at a time
        assert await probe == TextDelta("back")
    assert breaker.seconds_left == 0
    assert route.remark() == ""


async def test_a_probe_that_is_cancelled_decides_nothing(stack: AsyncExitStack) -> None:
    now = [0.0]
    first = await side(stack, "first")
    first.upstream.breaker = breaker = CircuitBreaker("first", failures=1, open_seconds=10.0, clock=lambda: now[0])
    route = router(first.upstream)
    breaker.failed(breaker.enter() or 0)
    error = await failure(route)
    assert isinstance(error, UpstreamRefused)
    assert (error.retry_after, first.asked, route.is_available) == (10.0, 0, False)
    now[0] = 10.0
    first.server.replies = [Reply(delay=60)]
    call = asyncio.create_task(complete(route))
    await until(lambda: first.asked)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await complete(route)).text == "from first"


@pytest.mark.parametrize("reply", [Reply(delay=60), Reply(pause=60), Reply(deltas=["a"] * 9, pause=0.2)])
async def test_cancelling_stops_the_upstream(route: Router, first: Side, second: Side, reply: Reply) -> None:
    first.server.default, second.server.default = Reply(status=401), reply
    call = asyncio.create_task(complete(route, deadline=soon(60)))
    await until(lambda: second.asked)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: (second.server.abandoned, second.server.active) == (1, 0), seconds=0.5)


async def test_cancelling_ends_the_wait_before_another_try(first: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = asyncio.Event()

    def long(attempt: int) -> float:
        waits.set()
        return 60.0

    monkeypatch.setattr(router_module, "full_jitter", long)
    first.server.default = FAILS
    call = asyncio.create_task(complete(router(first.upstream), deadline=soon(600)))
    await waits.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert first.asked == 1


async def test_a_full_queue_leads_to_the_next(stack: AsyncExitStack, second: Side) -> None:
    first = await side(stack, "first", slots=1)
    first.server.default = Reply(deltas=["from first"], delay=0.2)
    route = router(first.upstream, second.upstream)
    answers = await asyncio.gather(*(complete(route) for _ in range(8)))
    assert sorted(answer.text for answer in answers) == ["from first"] * 5 + ["from second"] * 3


async def test_a_prompt_goes_to_the_first_context_that_it_fits(stack: AsyncExitStack) -> None:
    small, large = await side(stack, "small", context_tokens=50), await side(stack, "large", context_tokens=100)
    route = router(small.upstream, large.upstream)
    assert route.description.max_input_tokens == 100
    assert (await complete(route, [Message("user", "a" * 300)])).text == "from large"
    with pytest.raises(PromptTooLong, match="about 104 tokens; the model's context is 100"):
        await complete(route, [Message("user", "a" * 400)])
    large.server.default = FAILS
    with pytest.raises(UpstreamFailed):
        await complete(route, [Message("user", "a" * 300)])
    assert small.asked == 0


async def test_the_shortest_delay_is_reported(route: Router, first: Side, second: Side) -> None:
    first.server.default = Reply(status=429, headers={"Retry-After": "40"})
    second.server.default = Reply(status=429, headers={"Retry-After": "20"})
    error = await failure(route)
    assert isinstance(error, UpstreamFull)
    assert error.retry_after == 20.0


async def test_the_description_names_what_is_behind_it(route: Router, first: Side) -> None:
    assert (route.description.identity.name, route.description.engine) == ("both", "route: gpt, gpt")
    assert router(first.upstream).description == first.upstream.description
    assert route.estimate(MESSAGES, ChatOptions(max_output_tokens=10)) == Cost(22, 0)
    assert router(first.upstream, missing="another is not there").remark() == "another is not there"
