"""Endpoints differ: the table provider_quirks.toml, through a real channel to a real server, with its ledger."""

import asyncio
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
    raw = RawBody(body, content_type, case.get("split", 0), case.get("cut", False))
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
        assert re.search(case["message"], error.details() or "")
        assert row.outcome is Outcome.FAILED
        if text:
            assert row.usage.completion_tokens > 0
    assert len(served.upstream.requests) == case.get("asked", 1)
