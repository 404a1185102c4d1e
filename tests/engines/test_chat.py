"""The chat model against a scripted server: what it sends, what it returns, and what it makes of every failure."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from server.engines.chat import Endpoint, OpenAIChatModel, estimated_tokens
from server.engines.interfaces import (
    ChatDone,
    ChatOptions,
    FinishReason,
    Message,
    ModelDescription,
    ModelIdentity,
    ModelTask,
    Prices,
    TextDelta,
    Usage,
    UsageSource,
)
from server.errors import (
    DeadlineExceeded,
    InvalidRequest,
    QuintetError,
    ServerOverloaded,
    UpstreamFailed,
    UpstreamTimeout,
)
from tests.fakes import OpenAIServer, Reply
from tests.waiting import until

KEY = "sk-very-secret"
FREE = Prices()
MESSAGES = [Message("system", "Be brief."), Message("user", "Hi!")]
DESCRIPTION = ModelDescription(ModelIdentity("gpt", "configured", ""), ModelTask.CHAT, "openai", max_input_tokens=4096)


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer(KEY).running() as server:
        yield server


@asynccontextmanager
async def chatting(
    base_url: str, *, key: str = KEY, slots: int = 1, prices: Prices = FREE, token_seconds: float = 5.0
) -> AsyncIterator[OpenAIChatModel]:
    endpoint = Endpoint(base_url, "gpt", key, {"X-Team": KEY}, prices)
    model = OpenAIChatModel(DESCRIPTION, endpoint, slots=slots, token_seconds=token_seconds)
    try:
        yield model
    finally:
        await model.close()


@pytest.fixture
async def model(upstream: OpenAIServer) -> AsyncIterator[OpenAIChatModel]:
    async with chatting(upstream.base_url, slots=2) as chat_model:
        yield chat_model


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


async def failure(model: OpenAIChatModel, deadline: float | None = None) -> QuintetError:
    with pytest.raises(QuintetError) as caught:
        await model.complete(MESSAGES, ChatOptions(), deadline=deadline or soon())
    return caught.value


async def test_stream(upstream: OpenAIServer, model: OpenAIChatModel) -> None:
    upstream.replies = [Reply(pause=0.05)]
    events = [event async for event in model.stream(MESSAGES, ChatOptions(), deadline=soon())]
    assert events == [
        TextDelta("Hello"),
        TextDelta(" there."),
        ChatDone(FinishReason.STOP, Usage(11, 3, UsageSource.PROVIDER), ModelIdentity("gpt", "gpt-2026", "")),
    ]


async def test_only_given_options_are_sent(upstream: OpenAIServer, model: OpenAIChatModel) -> None:
    answer = await model.complete(MESSAGES, ChatOptions(), deadline=soon())
    options = ChatOptions(max_output_tokens=7, temperature=0.0, top_p=0.5, stop=("END",), seed=3)
    await model.complete(MESSAGES, options, deadline=soon())
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


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("tool_calls", FinishReason.STOP),
    ],
)
async def test_finish_reasons(
    upstream: OpenAIServer, model: OpenAIChatModel, reported: str, expected: FinishReason
) -> None:
    upstream.replies = [Reply(finish_reason=reported)]
    assert (await model.complete(MESSAGES, ChatOptions(), deadline=soon())).done.finish_reason is expected


async def test_usage_is_estimated_where_the_provider_sends_none(upstream: OpenAIServer, model: OpenAIChatModel) -> None:
    upstream.replies = [Reply(deltas=["four", "", "猫猫猫猫"], usage=None)]
    answer = await model.complete(MESSAGES, ChatOptions(), deadline=soon())
    assert answer.done.usage == Usage(3 + 4 + 1 + 4, 4, UsageSource.ESTIMATED)
    assert [estimated_tokens(text) for text in ("", "a", "abcd", "abcde", "猫")] == [0, 1, 1, 2, 1]


async def test_cost_is_rounded_up(upstream: OpenAIServer) -> None:
    async with chatting(upstream.base_url, prices=Prices(150_000, 600_000, currency="EUR")) as model:
        usage = (await model.complete(MESSAGES, ChatOptions(), deadline=soon())).done.usage
    assert (usage.cost_micros, usage.currency) == (4, "EUR")  # 11 * 0.15 + 3 * 0.6 = 3.45 millionths


CONTEXT_OPENAI = '{"error": {"message": "maximum context", "code": "context_length_exceeded", "param": "messages"}}'
CONTEXT_LLAMA = '{"error": {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9031, "n_ctx": 4096}}'
PARAMETER = '{"error": {"message": "unsupported", "code": "unsupported_value", "param": "%s"}}'


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (
            Reply(status=400, body=CONTEXT_OPENAI),
            InvalidRequest,
            "messages: has too many tokens; the model's context is 4096",
        ),
        (
            Reply(status=400, body=CONTEXT_LLAMA),
            InvalidRequest,
            "messages: has 9031 tokens; the model's context is 4096",
        ),
        (
            Reply(status=400, body=PARAMETER % "temperature"),
            InvalidRequest,
            "temperature: .* does not accept this value",
        ),
        (Reply(status=400, body=PARAMETER % "max_completion_tokens"), InvalidRequest, "max_output_tokens: "),
        (Reply(status=400, body=PARAMETER % "stream"), UpstreamFailed, "HTTP 400"),
        (Reply(status=400, body="not json"), UpstreamFailed, "HTTP 400"),
        (Reply(status=403), UpstreamFailed, "the server's configuration .* is at fault"),
        (
            Reply(status=404, body='{"error": {"code": "model_not_found"}}'),
            UpstreamFailed,
            "the server's configuration",
        ),
        (Reply(status=418), UpstreamFailed, "HTTP 418"),
        (Reply(status=500, body=KEY), UpstreamFailed, "HTTP 500"),
        (Reply(status=503), UpstreamFailed, "HTTP 503"),
        (Reply(cut_after=2), UpstreamFailed, "connection .* failed"),
        (Reply(finish_reason=None, usage=None), UpstreamFailed, "broke off"),
        (Reply(raw_events=['{"error": {"message": "boom", "code": 500}}']), UpstreamFailed, "an error or nonsense"),
        (Reply(raw_events=["{not json"]), UpstreamFailed, "an error or nonsense"),
        (Reply(raw_events=['{"choices": [{"delta": null}]}']), UpstreamFailed, "an error or nonsense"),
        (Reply(raw_events=["[DONE]"]), UpstreamFailed, "broke off"),
    ],
)
async def test_failures(
    upstream: OpenAIServer,
    model: OpenAIChatModel,
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
    await model.complete(MESSAGES, ChatOptions(), deadline=soon())  # it works again, and no turn is lost
    with pytest.raises(kind, match=message):
        raise error


async def test_wrong_key_is_the_operators_fault_and_appears_nowhere(
    upstream: OpenAIServer, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "sk-wrong-and-secret"
    async with chatting(upstream.base_url, key=wrong) as model:
        with caplog.at_level(logging.DEBUG):
            error = await failure(model)
        assert isinstance(error, UpstreamFailed)
        assert "configuration" in error.message
        assert wrong not in f"{error.message} {error!r} {caplog.text} {model!r} {vars(model)}"
        assert upstream.requests[-1].headers["authorization"] == f"Bearer {wrong}"


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0", 0.5), ("1e9", 300.0), ("nan", 5.0), ("tomorrow", 5.0), (None, 5.0)]
)
async def test_full_provider_is_not_waited_for(
    upstream: OpenAIServer, model: OpenAIChatModel, header: str | None, seconds: float
) -> None:
    upstream.replies = [Reply(status=429, headers={"Retry-After": header} if header else {})]
    error = await failure(model, deadline=soon(1.0))
    assert isinstance(error, ServerOverloaded)
    assert error.retry_after == seconds


async def test_connection_that_fails_is_tried_once_more(upstream: OpenAIServer, model: OpenAIChatModel) -> None:
    upstream.replies = [Reply(hang_up=True)]
    assert (await model.complete(MESSAGES, ChatOptions(), deadline=soon())).text == "Hello there."
    upstream.replies = [Reply(hang_up=True), Reply(hang_up=True)]
    assert isinstance(await failure(model), UpstreamFailed)


async def test_embedded_endpoint_needs_no_proxy_and_keeps_no_connection(
    upstream: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    endpoint = Endpoint(upstream.base_url, "gpt", KEY, is_embedded=True)
    model = OpenAIChatModel(DESCRIPTION, endpoint, slots=1, token_seconds=5.0)
    assert (await model.complete(MESSAGES, ChatOptions(), deadline=soon())).text == "Hello there."
    assert upstream.requests[0].headers["connection"] == "close"
    await model.close()


async def test_nobody_listens(upstream: OpenAIServer) -> None:
    async with chatting("http://127.0.0.1:1/v1") as model:
        assert isinstance(await failure(model), UpstreamFailed)


@pytest.mark.parametrize("reply", [Reply(delay=5.0), Reply(pause=5.0)], ids=["before the answer", "in the answer"])
async def test_silence_is_a_timeout(upstream: OpenAIServer, reply: Reply) -> None:
    upstream.replies = [reply, reply]
    async with chatting(upstream.base_url, token_seconds=0.1) as impatient, chatting(upstream.base_url) as patient:
        assert isinstance(await failure(impatient), UpstreamTimeout)
        assert isinstance(await failure(patient, deadline=soon(0.1)), UpstreamTimeout)
    await until(lambda: upstream.abandoned == 2, seconds=1.0)


async def test_slow_tokens_are_not_a_timeout(upstream: OpenAIServer) -> None:
    upstream.replies = [Reply(deltas=["a"] * 5, pause=0.1)]
    async with chatting(upstream.base_url, token_seconds=0.3) as model:
        assert (await model.complete(MESSAGES, ChatOptions(), deadline=soon())).text == "aaaaa"


async def test_deadline_that_has_passed_asks_nobody(upstream: OpenAIServer, model: OpenAIChatModel) -> None:
    assert isinstance(await failure(model, deadline=soon(-1.0)), DeadlineExceeded)
    assert upstream.requests == []


async def test_closing_the_stream_closes_the_connection(upstream: OpenAIServer, model: OpenAIChatModel) -> None:
    upstream.replies = [Reply(deltas=["a"] * 1000, pause=0.01)]
    async with aclosing(model.stream(MESSAGES, ChatOptions(), deadline=soon())) as events:
        assert await anext(events) == TextDelta("a")
    await until(lambda: (upstream.abandoned, upstream.active) == (1, 0), seconds=1.0)


@pytest.mark.parametrize("reply", [Reply(delay=5.0), Reply(pause=5.0)], ids=["before the answer", "in the answer"])
async def test_cancelling_the_call_closes_the_connection(
    upstream: OpenAIServer, model: OpenAIChatModel, reply: Reply
) -> None:
    upstream.replies = [reply]
    call = asyncio.create_task(model.complete(MESSAGES, ChatOptions(), deadline=soon()))
    await until(lambda: upstream.requests)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: (upstream.abandoned, upstream.active) == (1, 0), seconds=1.0)


async def test_one_slot_four_waiting_and_the_rest_refused(upstream: OpenAIServer) -> None:
    upstream.replies = [Reply(delay=0.05) for _ in range(5)]
    async with chatting(upstream.base_url) as model:
        calls = [asyncio.create_task(model.complete(MESSAGES, ChatOptions(), deadline=soon())) for _ in range(7)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["ChatAnswer"] * 5 + ["ServerOverloaded"] * 2
    assert upstream.most_active == 1


async def test_who_waits_for_a_turn_keeps_his_deadline(upstream: OpenAIServer) -> None:
    upstream.replies = [Reply(delay=0.5)]
    async with chatting(upstream.base_url) as model:
        first = asyncio.create_task(model.complete(MESSAGES, ChatOptions(), deadline=soon()))
        await until(lambda: upstream.requests)
        assert isinstance(await failure(model, deadline=soon(0.05)), DeadlineExceeded)
        assert (await first).text == "Hello there."
    assert len(upstream.requests) == 1
