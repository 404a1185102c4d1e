"""Endpoints differ: the table provider_quirks.toml, through a real channel to a real server, with its ledger."""

import asyncio
import json
import re
import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from quintet.v1 import chat_pb2, chat_pb2_grpc, common_pb2

from server.app import running
from server.domain.usage import Entry, Outcome, Selection
from server.settings import Settings
from server.tasks.chat import registry, router
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.usage.reader import SqlReader
from tests.e2e.tasks import conversation
from tests.e2e.test_bad_input import details
from tests.fakes import OpenAIServer, RawBody, Reply
from tests.waiting import until

CASES: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("provider_quirks.toml").read_text())["case"]
PROVIDERS = sorted({case["provider"].replace(".", "-") for case in CASES})
PROVIDER = """
[providers.{name}]
kind = "openai"
base_url = "{address}"
[providers.{name}.models.gpt]
context_tokens = 8000
"""
ENDS = {"crlf": b"\r\n", "cr": b"\r"}
SECONDS = 4.9  # less than the delay of an overloaded provider that names none


@dataclass
class Served:
    upstream: OpenAIServer
    chat: "chat_pb2_grpc.ChatServiceAsyncStub"
    ledger: SqlReader

    async def ask(self, provider: str) -> tuple[str, chat_pb2.ChatDone | None, grpc.aio.AioRpcError | None]:
        """The text of a streamed answer, its end, or its error."""
        text, done = "", None
        request = chat_pb2.StreamChatRequest(messages=conversation("hi"), model=f"{provider.replace('.', '-')}/gpt")
        try:
            async for event in self.chat.StreamChat(request, timeout=SECONDS):
                text += event.delta.text
                done = event.done if event.HasField("done") else None
        except grpc.aio.AioRpcError as error:
            return text, done, error
        return text, done, None

    async def row(self) -> Entry:
        """The newest call, settled."""
        async with asyncio.timeout(10.0):
            while True:
                (row,) = await self.ledger.entries(Selection(), before="", limit=1)
                if row.outcome is not Outcome.OPEN:
                    return row
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("quirks")
    (folder / "models").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "CircuitBreaker", partial(CircuitBreaker, failures=10_000))
        patch.setattr(router, "_BACKOFF_SECONDS", 0.001)
        async with AsyncExitStack() as stack:
            upstream = await stack.enter_async_context(OpenAIServer("none").running())
            tables = "".join(PROVIDER.format(name=name, address=upstream.base_url) for name in PROVIDERS)
            (folder / "providers.toml").write_text(f'{tables}[routes]\ndefault = ["proxy/gpt"]\n')
            settings = Settings(data=folder, port=0, llm="off", providers=folder / "providers.toml", lanes=1)
            app = await stack.enter_async_context(running(settings.model_copy(update={"shutdown_pause_seconds": 0})))
            await app.loaded()
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(app.address))
            yield Served(upstream, chat_pb2_grpc.ChatServiceStub(channel), SqlReader(settings.ledger_target))


def reply_of(case: dict[str, Any]) -> Reply:
    status = case.get("status", 200)
    content = case["body"].encode().replace(b"\n", ENDS.get(case.get("newline", ""), b"\n"))
    content_type = case.get("content_type", "text/event-stream" if status == 200 else "application/json")
    body = (b"\xef\xbb\xbf" if case.get("bom") else b"") + content
    raw = RawBody(body, content_type, case.get("split", 0), case.get("cut", False), case.get("stalls", False))
    return Reply(status=status, headers=case.get("headers", {}), raw=raw)


@pytest.mark.parametrize("case", CASES, ids=[f"{case['provider']}: {case['quirk']}" for case in CASES])
async def test_quirk(served: Served, case: dict[str, Any]) -> None:
    served.upstream.requests.clear()
    served.upstream.default = reply_of(case)
    text, done, error = await served.ask(case["provider"])
    row = await served.row()
    assert text == case.get("text", "Hello world")
    if done is not None:
        reported = done.usage.prompt_tokens, done.usage.completion_tokens
        assert "error" not in case
        assert common_pb2.FinishReason.Name(done.finish_reason) == f"FINISH_REASON_{case.get('finish', 'STOP')}"
        assert reported == (row.usage.prompt_tokens, row.usage.completion_tokens) == tuple(case.get("tokens", (7, 2)))
        assert (row.outcome, row.usage.source.name) == (Outcome.OK, case.get("source", "PROVIDER"))
    else:
        assert error is not None
        code, reason = case["error"].split()
        assert (error.code().name, details(error)["ErrorInfo"].reason) == (code, reason)
        assert ("RetryInfo" in details(error)) == case.get("retry", reason in ("UPSTREAM_FAILED", "SERVER_OVERLOADED"))
        assert re.search(case["message"], error.details() or "")
        assert row.outcome is Outcome.FAILED
        if text:
            assert row.usage.completion_tokens > 0
    assert len(served.upstream.requests) == case.get("asked", 1)


def event(content: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': content}}]})}\n\n".encode()


END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
LARGE = {
    "12 MB in one chunk without a space": event("x" * 12_000_000),
    "newlines alone": event("\n" * 1_000_000),
    "NUL alone": event("\0" * 500_000),
    "lone halves of characters": event("\ud83d" * 100_000),
    "characters as escapes": event("😀" * 100_000),
    "20 chunks of 200 KB": event("y" * 200_000) * 20,
    "a whole answer": json.dumps({"choices": [{"message": {"content": "z " * 1_000_000}}]}).encode(),
}


@pytest.mark.parametrize("body", LARGE.values(), ids=LARGE)
async def test_large_texts_are_cut_and_settled(served: Served, body: bytes) -> None:
    served.upstream.default = Reply(raw=RawBody(body if body.startswith(b"{") else body + END, "text/event-stream"))
    text, done, error = await served.ask("proxy")
    assert error is None
    assert done is not None
    assert done.finish_reason == common_pb2.FINISH_REASON_LENGTH
    assert 0 < len(text) <= 4 * 512
    assert (await served.row()).usage.completion_tokens == 512


@pytest.mark.parametrize("body", [b"data: " + b"x" * 17_000_000, b"[" * 200_000, b"data: {\n" * 200_000 + b"\n"])
async def test_what_is_too_large_for_an_event_is_no_answer(served: Served, body: bytes) -> None:
    served.upstream.default = Reply(raw=RawBody(body, "text/event-stream", split=1 << 20))
    text, _, error = await served.ask("proxy")
    assert text == ""
    assert error is not None
    assert "cannot be read" in (error.details() or "")
    assert (await served.row()).outcome is Outcome.FAILED


async def test_an_error_is_read_as_far_as_it_is_needed(served: Served) -> None:
    abandoned = served.upstream.abandoned
    served.upstream.default = Reply(status=400, raw=RawBody(b"x" * 100_000, "text/plain", stalls=True))
    _, _, error = await served.ask("proxy")
    assert error is not None
    assert "HTTP 400" in (error.details() or "")
    await until(lambda: served.upstream.abandoned > abandoned)


@pytest.mark.parametrize("reply", [Reply(hang_up=True), Reply(deltas=[], cut_after=1)], ids=["before", "in the answer"])
async def test_a_request_that_was_read_is_sent_once_and_its_prompt_is_charged(served: Served, reply: Reply) -> None:
    served.upstream.requests.clear()
    served.upstream.default = reply
    _, _, error = await served.ask("proxy")
    assert error is not None
    assert details(error)["ErrorInfo"].reason == "UPSTREAM_FAILED"
    row = await served.row()
    assert (row.usage.prompt_tokens, row.usage.completion_tokens, row.usage.source.name) == (5, 0, "ESTIMATED")
    assert len(served.upstream.requests) == 1
