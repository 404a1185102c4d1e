"""Traces of the real server at a real collector: parents, attributes, and that no text and no key is in them."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from quintet.v1 import chat_pb2, chat_pb2_grpc, classification_pb2, classification_pb2_grpc

from tests.conftest import ROOT, start_server, wait_ready
from tests.e2e.tasks import conversation
from tests.fakes import OpenAIServer, Reply, TraceCollector

KEY = "sk-this-must-never-be-seen"
TEXT = "Nobody may read this sentence."
CHAT, STREAM_CHAT = "quintet.v1.ChatService/Chat", "quintet.v1.ChatService/StreamChat"
CLASSIFY = "quintet.v1.ClassificationService/Classify"
CALLERS_SPAN = "b7ad6b7169203331"


def trace_id(number: int) -> str:
    return f"{number:032x}"


def metadata(number: int, *, sampled: bool = True) -> list[tuple[str, str]]:
    return [
        ("x-request-id", f"request-{number}"),
        ("traceparent", f"00-{trace_id(number)}-{CALLERS_SPAN}-{'01' if sampled else '00'}"),
        ("authorization", f"Bearer {KEY}"),
    ]


@dataclass
class Seen:
    """The spans of some calls, by trace and by name, and the headers that the language model's endpoint got."""

    collector: TraceCollector
    headers: list[dict[str, str]] = field(default_factory=list)

    def span(self, number: int, name: str) -> Span:
        """The only one of that name in a trace."""
        (found,) = [
            span for span in self.collector.spans if (span.trace_id.hex(), span.name) == (trace_id(number), name)
        ]
        return found


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


@pytest.fixture(scope="module")
async def seen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Seen]:
    """The spans of one call of each kind, from a server that has stopped since."""
    log = tmp_path_factory.mktemp("traced") / "log.txt"
    async with TraceCollector().running() as collector, OpenAIServer(KEY).running() as upstream:
        failing = [Reply(status=500)] * 3  # it is tried three times
        upstream.replies = [Reply(), Reply(), *failing, Reply(deltas=["a"] * 1000, pause=0.01), Reply()]
        server = await asyncio.to_thread(
            start_server,
            data,
            log,
            traces=collector.endpoint,
            llm_base_url=upstream.base_url,
            llm_model="gpt-x",
            llm_api_key=KEY,
            log_level="DEBUG",
        )
        try:
            await asyncio.to_thread(wait_ready, server.address, seconds=180)
            async with grpc.aio.insecure_channel(server.address) as channel:
                await call_everything(channel)
        finally:
            status = await asyncio.to_thread(server.stop)
        assert status == 0
        assert KEY not in log.read_text()
        yield Seen(collector, [request.headers for request in upstream.requests])


async def call_everything(channel: grpc.aio.Channel) -> None:
    chat: Any = chat_pb2_grpc.ChatServiceStub(channel)
    classification: Any = classification_pb2_grpc.ClassificationServiceStub(channel)
    asked = chat_pb2.ChatRequest(messages=conversation(TEXT))
    streamed = chat_pb2.StreamChatRequest(messages=conversation(TEXT))
    await chat.Chat(asked, metadata=metadata(1))
    assert [event async for event in chat.StreamChat(streamed, metadata=metadata(2))]
    with pytest.raises(grpc.RpcError):
        await chat.Chat(asked, metadata=metadata(3))
    stream = chat.StreamChat(streamed, metadata=metadata(4))
    await stream.read()
    stream.cancel()
    await chat.Chat(asked, metadata=metadata(5, sampled=False))
    await classification.Classify(classification_pb2.ClassifyRequest(texts=[TEXT]), metadata=metadata(6))
    with pytest.raises(grpc.RpcError):
        await classification.Classify(classification_pb2.ClassifyRequest(), metadata=metadata(7))


async def test_a_call_continues_its_callers_trace(seen: Seen) -> None:
    call, asked = seen.span(1, CHAT), seen.span(1, "chat gpt-x")
    assert call.kind == Span.SPAN_KIND_SERVER
    assert call.parent_span_id.hex() == CALLERS_SPAN
    found = attributes(call)
    assert found["rpc.system.name"] == "grpc"
    assert (found["rpc.method"], found["rpc.response.status_code"]) == (CHAT, "OK")
    assert found["quintet.request_id"] == "request-1"
    assert "error.type" not in found
    assert found["quintet.upstream_seconds"] > 0
    assert asked.parent_span_id == call.span_id
    assert call.start_time_unix_nano <= asked.start_time_unix_nano < asked.end_time_unix_nano
    assert asked.end_time_unix_nano <= call.end_time_unix_nano
    assert seen.collector.resource["service.name"] == "quintet"


async def test_the_language_model_is_asked_in_a_span_of_its_own(seen: Seen) -> None:
    for number, request in ((1, seen.headers[0]), (2, seen.headers[1])):
        asked = seen.span(number, "chat gpt-x")
        assert request["traceparent"] == f"00-{trace_id(number)}-{asked.span_id.hex()}-01"
        assert asked.kind == Span.SPAN_KIND_CLIENT
        found = attributes(asked)
        assert (found["gen_ai.operation.name"], found["gen_ai.provider.name"]) == ("chat", "endpoint")
        assert (found["gen_ai.request.model"], found["gen_ai.response.model"]) == ("gpt-x", "gpt-x-2026")
        assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (11, 3)
        assert [value.string_value for value in found["gen_ai.response.finish_reasons"].values] == ["stop"]
        assert found["gen_ai.response.time_to_first_chunk"] > 0
        assert found["server.address"] == "127.0.0.1"
    assert attributes(seen.span(2, STREAM_CHAT))["rpc.response.status_code"] == "OK"


async def test_errors_have_our_reasons(seen: Seen) -> None:
    call, refused = seen.span(3, CHAT), seen.span(7, CLASSIFY)
    asked = [span for span in seen.collector.spans if (span.trace_id.hex(), span.name) == (trace_id(3), "chat gpt-x")]
    assert len(asked) == 3, "one a try"
    assert {attributes(span)["error.type"] for span in (call, *asked)} == {"UPSTREAM_FAILED"}
    assert attributes(call)["rpc.response.status_code"] == "UNAVAILABLE"
    assert {span.status.code for span in (call, *asked)} == {Status.STATUS_CODE_ERROR}
    assert attributes(refused)["error.type"] == "INVALID_REQUEST"
    assert refused.status.code == Status.STATUS_CODE_UNSET  # the caller's fault


async def test_a_cancelled_stream_is_no_fault(seen: Seen) -> None:
    call, asked = seen.span(4, STREAM_CHAT), seen.span(4, "chat gpt-x")
    assert attributes(call)["error.type"] == attributes(asked)["error.type"] == "CANCELLED"
    assert call.status.code == asked.status.code == Status.STATUS_CODE_UNSET


async def test_what_the_caller_does_not_sample_is_not_sent(seen: Seen) -> None:
    assert not [span for span in seen.collector.spans if span.trace_id.hex() == trace_id(5)]
    assert seen.headers[-1]["traceparent"].startswith(f"00-{trace_id(5)}-")
    assert seen.headers[-1]["traceparent"].endswith("-00")


async def test_lanes_have_spans_with_waiting_and_computing(seen: Seen) -> None:
    call, part = seen.span(6, CLASSIFY), seen.span(6, "sentiment")
    assert part.parent_span_id == call.span_id
    found = attributes(part)
    assert found["quintet.compute_seconds"] == pytest.approx(attributes(call)["quintet.compute_seconds"])
    assert call.start_time_unix_nano <= part.start_time_unix_nano
    assert part.end_time_unix_nano <= call.end_time_unix_nano
    took = (part.end_time_unix_nano - part.start_time_unix_nano) / 1e9
    assert (
        0 <= found["quintet.queue_seconds"] < found["quintet.queue_seconds"] + found["quintet.compute_seconds"] <= took
    )


async def test_no_text_and_no_key_is_sent(seen: Seen) -> None:
    sent = b"".join(span.SerializeToString() for span in seen.collector.spans)
    assert b"request-1" in sent
    assert TEXT.encode() not in sent
    assert b"Hello" not in sent
    assert KEY.encode() not in sent


def test_a_collector_that_is_gone_holds_nothing_up(data: Path, tmp_path: Path) -> None:
    running = start_server(data, tmp_path / "log.txt", llm="off", traces="http://127.0.0.1:9")
    try:
        wait_ready(running.address, seconds=180)
        with grpc.insecure_channel(running.address) as channel:
            stub = classification_pb2_grpc.ClassificationServiceStub(channel)
            for _ in range(20):
                stub.Classify(classification_pb2.ClassifyRequest(texts=[TEXT]), timeout=20)
    finally:
        status = running.stop(20)
    assert status == 0
    log = running.log.read_text()
    assert log.count("traces cannot be sent to") == 1  # not for every batch
    assert "traces cannot be sent to http://127.0.0.1:9/ (Connection refused); spans are dropped" in log
    assert "Traceback" not in log


def test_without_the_packages_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()  # hides what is installed
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "QUINTET_TRACES": "http://127.0.0.1:4317", "QUINTET_PORT": "0"}
    command = [sys.executable, "-m", "server"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "QUINTET_TRACES needs more packages" in done.stderr
    assert 'pip install "quintet[traces]"' in done.stderr
    assert "Traceback" not in done.stderr
