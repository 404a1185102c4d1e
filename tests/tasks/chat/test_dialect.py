"""Fields that an endpoint refuses: it is asked again without them or by their other name, and callers are not blamed
for what they did not send.
"""

import json
from collections.abc import AsyncIterator

import pytest

from server.domain.chat import ChatOptions
from server.domain.context import Context, set_current
from server.domain.errors import InvalidRequest, OptionRefused, UpstreamRejected
from server.tasks.chat.dialect import Dialect
from server.tasks.chat.endpoint import Endpoint
from server.tasks.chat.openai_upstream import Upstream
from server.tasks.chat.router import Router
from tests.chatting import chatting, client_for, complete, soon
from tests.fakes import MemoryLedger, OpenAIServer, RawBody, Reply

OURS = ChatOptions(max_output_tokens=9, temperature=0.0, seed=1)  # as RagService asks
CALLERS = ChatOptions(max_output_tokens=9, temperature=0.0, seed=1, of_caller=frozenset({"temperature"}))
UNSUPPORTED = "Unsupported parameter: '{}' is not supported with this model. Use '{}' instead."
EXTRA = {"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are not permitted"}
REFUSALS = {
    "openai, max_tokens": (
        400,
        {"error": {"message": UNSUPPORTED.format("max_tokens", "max_completion_tokens"), "param": "max_tokens"}},
        "max_tokens",
    ),
    "mistral, max_completion_tokens": (
        422,
        {"object": "error", "message": {"detail": [EXTRA]}, "type": "invalid_request_error"},
        "max_completion_tokens",
    ),
    "vllm, max_completion_tokens": (
        400,
        {"object": "error", "message": str([{**EXTRA, "loc": ("body", "max_completion_tokens")}]), "code": 400},
        "max_completion_tokens",
    ),
    "azure, max_completion_tokens": (
        400,
        {"error": {"message": "Unrecognized request argument supplied: max_completion_tokens", "param": None}},
        "max_completion_tokens",
    ),
    "fastapi, max_completion_tokens": (422, {"detail": [EXTRA]}, "max_completion_tokens"),
    "openai, temperature": (
        400,
        {
            "error": {
                "message": "Unsupported value: 'temperature' does not support 0.0 with this model.",
                "type": "invalid_request_error",
                "param": "temperature",
                "code": "unsupported_value",
            }
        },
        "temperature",
    ),
    "anthropic, temperature": (
        400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": "`temperature` is deprecated"}},
        "temperature",
    ),
    "gemini, seed": (
        400,
        [{"error": {"code": 400, "message": 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'}}],
        "seed",
    ),
    "azure, stream_options": (
        400,
        {"error": {"message": "Unrecognized request argument supplied: stream_options"}},
        "stream_options",
    ),
    "openai, stream": (
        400,
        {"error": {"message": "Your organization must be verified to stream this model.", "param": "stream"}},
        "stream",
    ),
    "a proxy, a text": (400, "unknown field: seed", "seed"),
}


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer().running() as server:
        yield server


@pytest.fixture
async def model(upstream: OpenAIServer) -> AsyncIterator[Upstream]:
    async with chatting(client_for(upstream)) as found:
        yield found


def refusing(status: int, body: object) -> Reply:
    return Reply(status=status, body=body if isinstance(body, str) else json.dumps(body))


@pytest.mark.parametrize(("status", "body", "field"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refused_field_is_renamed_or_left_out_and_that_is_remembered(
    upstream: OpenAIServer, model: Upstream, status: int, body: object, field: str
) -> None:
    if field == "max_tokens":
        model.endpoint.dialect = Dialect("max_tokens")
    upstream.replies = [refusing(status, body)]
    assert (await complete(model, options=OURS)).text == "Hello there."
    refused, taken = (request.body for request in upstream.requests)
    assert field in refused
    assert field not in taken
    limits = [taken.get(name) for name in ("max_completion_tokens", "max_tokens")]
    assert sorted(limits, key=str) == [9, None]
    await complete(model, options=OURS)
    assert upstream.requests[2].body == taken


@pytest.mark.parametrize("name", ["openai, temperature", "anthropic, temperature"])
async def test_what_the_caller_chose_is_not_left_out(upstream: OpenAIServer, model: Upstream, name: str) -> None:
    status, body, _ = REFUSALS[name]
    upstream.replies = [refusing(status, body)]
    with pytest.raises(OptionRefused, match=r"temperature: .* does not accept this value"):
        await complete(model, options=CALLERS)
    assert len(upstream.requests) == 1
    assert (await complete(model)).text == "Hello there."


async def test_what_was_not_sent_is_nobodys_fault(upstream: OpenAIServer, model: Upstream) -> None:
    status, body, _ = REFUSALS["openai, temperature"]
    upstream.default = refusing(status, body)
    with pytest.raises(UpstreamRejected):
        await complete(model, options=ChatOptions())
    assert len(upstream.requests) == 1


async def test_the_next_upstream_may_take_what_the_first_refuses(upstream: OpenAIServer, model: Upstream) -> None:
    set_current(Context("/quintet.v1.ChatService/Chat", "1", soon()))
    status, body, _ = REFUSALS["openai, temperature"]
    async with OpenAIServer().running() as other, chatting(client_for(other), "other") as second:
        upstream.default, other.default = refusing(status, body), Reply(deltas=["from the other"])
        route = Router("both", [model, second], MemoryLedger())
        assert (await complete(route, options=CALLERS)).text == "from the other"
        other.default = refusing(status, body)
        with pytest.raises(InvalidRequest, match="temperature"):
            await complete(route, options=CALLERS)


async def test_a_limit_that_is_too_large_is_left_out_once(upstream: OpenAIServer, model: Upstream) -> None:
    message = "max_tokens is too large: 4000. This model supports at most 2048 completion tokens."
    too_large = refusing(400, {"error": {"message": message, "param": "max_completion_tokens"}})
    upstream.replies = [too_large]
    await complete(model, options=ChatOptions(max_output_tokens=4000))
    await complete(model, options=ChatOptions(max_output_tokens=40))
    limits = [request.body.get("max_completion_tokens") for request in upstream.requests]
    assert limits == [4000, None, 40]


async def test_an_endpoint_that_takes_no_limit_gets_none(upstream: OpenAIServer, model: Upstream) -> None:
    names = ("max_completion_tokens", "max_tokens")
    upstream.replies = [refusing(422, {"detail": [{**EXTRA, "loc": ["body", name]}]}) for name in names]
    await complete(model, options=OURS)
    await complete(model, options=OURS)
    assert len(upstream.requests) == 4
    assert not set(names) & upstream.requests[3].body.keys()


async def test_an_endpoint_that_refuses_everything_is_asked_a_few_times(
    upstream: OpenAIServer, model: Upstream
) -> None:
    everything = "max_completion_tokens, max_tokens, temperature, 'seed' and stream_options are unknown"
    upstream.default = refusing(400, {"error": {"message": everything}})
    with pytest.raises(UpstreamRejected):
        await complete(model, options=OURS)
    assert len(upstream.requests) == 6
    assert model.endpoint.dialect == Dialect()


async def test_an_endpoint_that_closes_without_a_word_after_a_refusal(upstream: OpenAIServer, model: Upstream) -> None:
    content = json.dumps({"error": {"param": "temperature"}}).encode()
    upstream.replies = [Reply(status=400, raw=RawBody(content, "application/json", says_close=False))]
    assert (await complete(model, options=OURS)).text == "Hello there."


async def test_settings_say_what_an_endpoint_takes(upstream: OpenAIServer) -> None:
    dialect = Dialect("max_tokens", frozenset({"temperature", "stream_options"}))
    async with chatting(client_for(upstream), endpoint=Endpoint(client_for(upstream), "gpt", dialect=dialect)) as model:
        await complete(model, options=OURS)
        assert {*upstream.requests[0].body} == {"model", "messages", "max_tokens", "seed", "stream"}
        with pytest.raises(OptionRefused):
            await complete(model, options=CALLERS)
    assert len(upstream.requests) == 1


async def test_a_lost_request_is_repeated_only_with_a_key_that_the_endpoint_honours(upstream: OpenAIServer) -> None:
    endpoint = Endpoint(client_for(upstream), "gpt", idempotency_header="Idempotency-Key")
    ledger = MemoryLedger()
    async with chatting(client_for(upstream), endpoint=endpoint) as model:
        route = Router("one", [model], ledger)
        for number in range(2):
            set_current(Context("/quintet.v1.ChatService/Chat", str(number), soon()))
            upstream.replies = [Reply(hang_up=True), Reply(deltas=[], cut_after=1)]
            assert (await complete(route)).done.usage.total_tokens == 14
    keys = [request.headers["idempotency-key"] for request in upstream.requests]
    assert len(keys) == 6
    assert len(set(keys[:3])) == len(set(keys[3:])) == 1
    assert keys[0] != keys[3]
