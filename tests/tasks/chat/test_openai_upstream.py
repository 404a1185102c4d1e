"""The chat model against a scripted server: what it sends, what it returns, and what it makes of every failure."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import pytest

from server.domain.chat import (
    ChatDone,
    ChatOptions,
    ChatStarted,
    FinishReason,
    Message,
    Prices,
    TextDelta,
)
from server.domain.errors import (
    DeadlineExceeded,
    InvalidRequest,
    PromptTooLong,
    QuintetError,
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
from server.domain.usage import Usage, UsageSource
from server.tasks.chat import embedded
from server.tasks.chat.openai_upstream import Upstream
from server.tasks.chat.providers_file import Azure, Model
from server.tasks.chat.upstreams import client_of
from tests.chatting import MESSAGES, client, complete, events_of, soon
from tests.chatting import chatting as chatting_with
from tests.fakes import OpenAIServer, Reply
from tests.waiting import until

KEY = "sk-very-secret"
FREE = Prices()
COUNTED = 3 + 4 + 1 + 4  # tokens of MESSAGES by bytes


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer(KEY).running() as server:
        yield server


def chatting(
    base_url: str,
    *,
    key: str = KEY,
    slots: int = 1,
    prices: Prices = FREE,
    token_seconds: float = 5.0,
    context_tokens: int = 4096,
) -> AbstractAsyncContextManager[Upstream]:
    found = client(base_url, key, {"X-Team": KEY})
    return chatting_with(found, slots=slots, context_tokens=context_tokens, prices=prices, token_seconds=token_seconds)


@pytest.fixture
async def model(upstream: OpenAIServer) -> AsyncIterator[Upstream]:
    async with chatting(upstream.base_url, slots=2) as provider:
        yield provider


async def failure(model: Upstream, deadline: float | None = None) -> QuintetError:
    with pytest.raises(QuintetError) as caught:
        await complete(model, deadline=deadline)
    return caught.value


async def test_stream(upstream: OpenAIServer, model: Upstream) -> None:
    upstream.replies = [Reply(pause=0.05)]
    started, *events = await events_of(model)
    assert isinstance(started, ChatStarted)
    assert (started.provider, started.model.name, started.prompt_tokens) == ("fake", "gpt", COUNTED)
    assert started.count("four words are here") == 5
    assert events == [
        TextDelta("Hello"),
        TextDelta(" there."),
        ChatDone(FinishReason.STOP, Usage(11, 3, UsageSource.PROVIDER), ModelIdentity("gpt", "gpt-2026", "")),
    ]


async def test_only_given_options_are_sent(upstream: OpenAIServer, model: Upstream) -> None:
    answer = await complete(model)
    options = ChatOptions(max_output_tokens=7, temperature=0.0, top_p=0.5, stop=("END",), seed=3)
    await complete(model, options=options)
    assert answer.text == "Hello there."
    common = {
        "model": "gpt",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    given = {"max_completion_tokens": 7, "temperature": 0.0, "top_p": 0.5, "stop": ["END"], "seed": 3}
    assert [request.body for request in upstream.requests] == [
        {**common, "max_completion_tokens": 512},
        {**common, **given},
    ]


async def test_usage_is_estimated_where_the_provider_sends_none(upstream: OpenAIServer, model: Upstream) -> None:
    upstream.replies = [Reply(deltas=["four", "", "猫猫猫猫"], usage=None)]
    answer = await complete(model)
    assert answer.done.usage == Usage(COUNTED, 4, UsageSource.ESTIMATED)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 11},
        {"prompt_tokens": -1, "completion_tokens": 3},
        {"prompt_tokens": 11.5, "completion_tokens": 3},
        {"prompt_tokens": True, "completion_tokens": 3},
        {"prompt_tokens": "11", "completion_tokens": 3},
        {"prompt_tokens": 11, "completion_tokens": -3},
        {"prompt_tokens": 11, "completion_tokens": 2**40},
        {"prompt_tokens": None, "completion_tokens": 3},
        ["nonsense"],
        "nonsense",
    ],
)
async def test_usage_that_is_no_count_is_none(upstream: OpenAIServer, model: Upstream, usage: Any) -> None:
    upstream.replies = [Reply(usage=usage)]
    assert (await complete(model)).done.usage == Usage(COUNTED, 3, UsageSource.ESTIMATED)


@pytest.mark.parametrize(("cached", "expected"), [(8, 8), (11, 11), (12, 0), (-1, 0), (None, 0), ("8", 0)])
async def test_cached_tokens_have_their_own_price(upstream: OpenAIServer, cached: Any, expected: int) -> None:
    details = {"prompt_tokens": 11, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": cached}}
    upstream.replies = [Reply(usage=details)]
    async with chatting(upstream.base_url, prices=Prices(4_000_000, 8_000_000, 1_000_000)) as model:
        usage = (await complete(model)).done.usage
    assert (usage.cached_tokens, usage.cost_micros) == (expected, 4 * (11 - expected) + expected + 8 * 3)


async def test_estimate(upstream: OpenAIServer) -> None:
    async with chatting(upstream.base_url, prices=Prices(1_000_000, 2_000_000)) as model:
        assert model.estimate(MESSAGES, ChatOptions(max_output_tokens=100)) == Cost(COUNTED + 100, COUNTED + 200)
        long = [Message("user", "a" * 3000)]
        assert model.estimate(long, ChatOptions(max_output_tokens=100)).tokens == 1000 + 4 + 100
        assert await model.prompt_tokens(long) == 750 + 4


async def test_a_prompt_without_room_for_an_answer_is_not_sent(upstream: OpenAIServer) -> None:
    async with chatting(upstream.base_url, context_tokens=COUNTED + 1) as model:
        await complete(model)
    assert upstream.requests[0].body["max_completion_tokens"] == 1
    async with chatting(upstream.base_url, context_tokens=COUNTED) as model:
        error = await failure(model)
    assert isinstance(error, PromptTooLong)
    assert error.message == f"messages: has about {COUNTED} tokens; the model's context is {COUNTED}"
    assert len(upstream.requests) == 1


async def test_azure(upstream: OpenAIServer) -> None:
    resource = upstream.base_url.removesuffix("/v1")
    tables = {"mine": Model(context_tokens=4096)}
    provider = Azure(kind="azure", endpoint=resource, api_version="2024-10-21", models=tables)
    async with chatting_with(client_of(provider, KEY, "my gpt"), model="my gpt") as model:
        assert (await complete(model)).text == "Hello there."
        request = upstream.requests[0]
        assert request.path == "/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21"
        assert request.headers["api-key"] == KEY
        assert "authorization" not in request.headers
    async with chatting_with(client_of(provider, "wrong", "my gpt"), model="my gpt") as model:
        assert isinstance(await failure(model), UpstreamRefused)


async def test_cost_is_rounded_up(upstream: OpenAIServer) -> None:
    async with chatting(upstream.base_url, prices=Prices(150_000, 600_000, currency="EUR")) as model:
        usage = (await complete(model)).done.usage
    assert (usage.cost_micros, usage.currency) == (4, "EUR")  # 11 * 0.15 + 3 * 0.6 = 3.45 millionths


CONTEXT_OPENAI = '{"error": {"message": "maximum context", "code": "context_length_exceeded", "param": "messages"}}'
CONTEXT_LLAMA = '{"error": {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9031, "n_ctx": 4096}}'
PARAMETER = '{"error": {"message": "unsupported", "code": "unsupported_value", "param": "%s"}}'


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (
            Reply(status=400, body=CONTEXT_OPENAI),
            PromptTooLong,
            "messages: is too long for the model's context",
        ),
        (
            Reply(status=400, body=CONTEXT_LLAMA),
            PromptTooLong,
            "messages: has 9031 tokens; the model's context is 4096",
        ),
        (Reply(status=400, body=PARAMETER % "temperature"), UpstreamRejected, "HTTP 400"),  # it was not sent
        (Reply(status=400, body=PARAMETER % "model"), UpstreamRejected, "HTTP 400"),
        (Reply(status=400, body="not json"), UpstreamRejected, "HTTP 400"),
        (
            Reply(status=400, body='{"error": {"code": "content_filter"}}'),
            InvalidRequest,
            "refuses their content",
        ),
        (Reply(status=422), UpstreamRejected, "HTTP 422"),
        (Reply(status=429, body='{"error": {"code": "insufficient_quota"}}'), UpstreamQuotaExhausted, "operator"),
        (Reply(status=403), UpstreamRefused, "the server's configuration .* is wrong"),
        (
            Reply(status=404, body='{"error": {"code": "model_not_found"}}'),
            UpstreamRefused,
            "the server's configuration",
        ),
        (Reply(status=418), UpstreamRejected, "HTTP 418"),
        (Reply(status=500, body=KEY), UpstreamFailed, "HTTP 500"),
        (Reply(status=503), UpstreamFailed, "HTTP 503"),
        (Reply(hang_up=True), UpstreamBrokeOff, "connection .* failed after the request was sent"),
        (Reply(cut_after=2), UpstreamBrokeOff, "connection .* failed during the answer"),
        (Reply(raw_events=['{"error": {"message": "boom", "code": 500}}']), UpstreamBrokeOff, "reported an error"),
        (Reply(raw_events=["{not json"]), UpstreamBrokeOff, "cannot be read"),
        (Reply(raw_events=["[" * 100_000]), UpstreamBrokeOff, "cannot be read"),
        (Reply(raw_events=['{"choices": [{"delta": null}]}']), UpstreamBrokeOff, "broke off"),
    ],
)
async def test_failures(
    upstream: OpenAIServer,
    model: Upstream,
    reply: Reply,
    kind: type[QuintetError],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream.replies = [reply]
    with caplog.at_level(logging.DEBUG):
        error = await failure(model)
    assert type(error) is kind
    error_texts = f"{error.message} {error!r} {error.metadata} {caplog.text} {model!r} {vars(model)}"
    assert KEY not in error_texts
    assert len(upstream.requests) == 1
    await complete(model)  # it works again, and no slot of the limiter is lost
    with pytest.raises(kind, match=message):
        raise error


async def test_wrong_key_is_the_operators_fault_and_appears_nowhere(
    upstream: OpenAIServer, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "sk-wrong-and-secret"
    async with chatting(upstream.base_url, key=wrong) as model:
        with caplog.at_level(logging.DEBUG):
            error = await failure(model)
        assert isinstance(error, UpstreamRefused)
        assert wrong not in f"{error.message} {error!r} {caplog.text} {model!r} {vars(model)}"
        assert upstream.requests[-1].headers["authorization"] == f"Bearer {wrong}"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0"}, 0.5),
        ({"Retry-After": "1e9"}, 300.0),
        ({"Retry-After": "nan"}, 5.0),
        ({"Retry-After": "tomorrow"}, 5.0),
        ({"Retry-After": "9", "Retry-After-Ms": "8500"}, 8.5),
        ({}, 5.0),
    ],
)
async def test_full_provider_is_not_waited_for(
    upstream: OpenAIServer, model: Upstream, headers: dict[str, str], seconds: float
) -> None:
    upstream.replies = [Reply(status=429, headers=headers)]
    error = await failure(model, deadline=soon(1.0))
    assert isinstance(error, UpstreamFull)
    assert error.retry_after == seconds


async def test_embedded_endpoint_needs_no_proxy_and_keeps_no_connection(
    upstream: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with chatting_with(embedded.client_of(upstream.base_url, KEY)) as model:
        assert (await complete(model)).text == "Hello there."
    assert upstream.requests[0].headers["connection"] == "close"


async def test_no_server_listens(upstream: OpenAIServer) -> None:
    async with chatting("http://127.0.0.1:1/v1") as model:
        assert type(await failure(model)) is UpstreamFailed


@pytest.mark.parametrize(
    "reply",
    [Reply(delay=5.0), Reply(body_delay=5.0), Reply(pause=5.0)],
    ids=["before the answer", "after its head", "in it"],
)
async def test_silence_is_a_timeout(upstream: OpenAIServer, reply: Reply) -> None:
    upstream.replies = [reply, reply]
    async with chatting(upstream.base_url, token_seconds=0.1) as impatient, chatting(upstream.base_url) as patient:
        assert isinstance(await failure(impatient), UpstreamTimeout)
        assert isinstance(await failure(patient, deadline=soon(0.1)), UpstreamTimeout)
    await until(lambda: upstream.abandoned == 2, seconds=1.0)


async def test_slow_tokens_are_not_a_timeout(upstream: OpenAIServer) -> None:
    upstream.replies = [Reply(deltas=["a"] * 5, pause=0.1)]
    async with chatting(upstream.base_url, token_seconds=0.3) as model:
        assert (await complete(model)).text == "aaaaa"


async def test_deadline_that_has_passed_sends_nothing(upstream: OpenAIServer, model: Upstream) -> None:
    assert isinstance(await failure(model, deadline=soon(-1.0)), DeadlineExceeded)
    assert upstream.requests == []


async def test_closing_the_stream_closes_the_connection(upstream: OpenAIServer, model: Upstream) -> None:
    upstream.replies = [Reply(deltas=["a"] * 1000, pause=0.01)]
    async with aclosing(model.stream(MESSAGES, ChatOptions(), deadline=soon())) as events:
        assert isinstance(await anext(events), ChatStarted)
        assert await anext(events) == TextDelta("a")
    await until(lambda: (upstream.abandoned, upstream.active) == (1, 0), seconds=1.0)


@pytest.mark.parametrize("reply", [Reply(delay=5.0), Reply(pause=5.0)], ids=["before the answer", "in the answer"])
async def test_cancelling_the_call_closes_the_connection(upstream: OpenAIServer, model: Upstream, reply: Reply) -> None:
    upstream.replies = [reply]
    call = asyncio.create_task(complete(model))
    await until(lambda: upstream.requests)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: (upstream.abandoned, upstream.active) == (1, 0), seconds=1.0)


async def test_one_slot_four_waiting_and_the_rest_refused(upstream: OpenAIServer) -> None:
    upstream.replies = [Reply(delay=0.05) for _ in range(5)]
    async with chatting(upstream.base_url) as model:
        calls = [asyncio.create_task(complete(model)) for _ in range(7)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["ChatAnswer"] * 5 + ["ServerOverloaded"] * 2
    assert upstream.most_active == 1


async def test_a_call_that_waits_keeps_its_deadline(upstream: OpenAIServer) -> None:
    upstream.replies = [Reply(delay=0.5)]
    async with chatting(upstream.base_url) as model:
        first = asyncio.create_task(complete(model))
        await until(lambda: upstream.requests)
        assert isinstance(await failure(model, deadline=soon(0.05)), DeadlineExceeded)
        assert (await first).text == "Hello there."
    assert len(upstream.requests) == 1
