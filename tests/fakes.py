"""Real parts that stand where others do in production."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from server.domain.chat import ChatDone, ChatOptions, ChatStarted, Message, TextDelta
from server.domain.errors import LedgerUnavailable
from server.domain.usage import Entry, Opened, Usage
from server.tasks.chat.openai_upstream import Upstream


@dataclass
class Reply:
    """What `OpenAIServer` does with one request. The defaults are those of a well-behaved provider."""

    deltas: list[str] = field(default_factory=lambda: ["Hello", " there."])
    finish_reason: str | None = "stop"
    usage: Any = field(default_factory=lambda: {"prompt_tokens": 11, "completion_tokens": 3})
    delay: float = 0.0  # seconds before anything is sent
    body_delay: float = 0.0  # seconds between the headers of an answer and its body
    pause: float = 0.0  # seconds before each delta
    cut_after: int | None = None  # close the connection after so many deltas, in the middle of the body
    hang_up: bool = False  # close the connection instead of answering
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str = "{}"  # for any other status than 200
    raw_events: list[str] | None = None  # data of events, instead of those made from the fields above
    raw: "RawBody | None" = None  # the whole body with any status, instead of all of the above but `headers`


@dataclass
class RawBody:
    """A body, byte for byte."""

    content: bytes
    content_type: str
    split: int = 0  # so many bytes are sent at once; 0: all
    cut: bool = False  # close the connection without the end of the body
    stalls: bool = False  # wait for the client to go away before the end of the body
    says_close: bool = True  # whether a header says that the connection is closed afterwards


_AZURE_PATH = re.compile(r"/openai/deployments/[^/]+/chat/completions\?api-version=[^&]+")
_KEY_HEADER = {False: ("authorization", ""), True: ("api-key", "")}


@dataclass
class Request:
    """What the server got."""

    headers: dict[str, str]
    body: dict[str, Any]
    path: str = ""


class OpenAIServer:
    """An HTTP server on loopback that speaks the streaming half of /v1/chat/completions, and Azure's version of it.

    Each request takes the next of `replies`, or else `default`. `abandoned` counts streams whose client went away.
    """

    def __init__(self, api_key: str = "test-key") -> None:
        self.api_key = api_key
        self.replies: list[Reply] = []
        self.default = Reply()
        self.requests: list[Request] = []
        self.abandoned = 0
        self.active = 0
        self.most_active = 0
        self.base_url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["OpenAIServer"]:
        """Listen while the body runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            request = await read_request(reader)
            self.requests.append(request)
            reply = self.replies.pop(0) if self.replies else self.default
            azure = _AZURE_PATH.fullmatch(request.path)
            if not azure and request.path != "/v1/chat/completions":
                reply = Reply(status=404)
            elif request.headers.get(*_KEY_HEADER[bool(azure)]).removeprefix("Bearer ") != self.api_key:
                reply = Reply(status=401, body='{"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}')
            gone = asyncio.create_task(reader.read())
            answer = asyncio.create_task(_answer(writer, reply, request.body["model"]))
            await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
            self.abandoned += not answer.done()
            for task in (gone, answer):
                task.cancel()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.active -= 1
            writer.close()


async def read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers["content-length"]))
    return Request(headers, json.loads(body), head[0].split()[1])


async def _answer(writer: asyncio.StreamWriter, reply: Reply, model: str) -> None:
    await asyncio.sleep(reply.delay)
    if reply.hang_up:
        return
    extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    if reply.raw:
        await _answer_raw(writer, reply.raw, f"HTTP/1.1 {reply.status} X\r\n{extra}")
        return
    if reply.status != 200:
        head = f"HTTP/1.1 {reply.status} X\r\nContent-Type: application/json\r\nContent-Length: {len(reply.body)}\r\n"
        head += "Connection: close\r\n"
        writer.write(f"{head}{extra}\r\n{reply.body}".encode())
        await writer.drain()
        return
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    await writer.drain()
    await asyncio.sleep(reply.body_delay)
    events = _events(reply, model) if reply.raw_events is None else reply.raw_events
    for number, event in enumerate(events):
        if number == reply.cut_after:
            return
        await asyncio.sleep(reply.pause)
        data = f"data: {event}\n\n".encode()
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _answer_raw(writer: asyncio.StreamWriter, raw: RawBody, head: str) -> None:
    writer.write(
        f"{head}Content-Type: {raw.content_type}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
    )
    size = raw.split or max(len(raw.content), 1)
    for start in range(0, len(raw.content), size):
        data = raw.content[start : start + size]
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()
        if raw.split:
            await asyncio.sleep(0)  # the reader gets what is there
    if raw.stalls:
        await asyncio.Event().wait()
    if not raw.cut:
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _events(reply: Reply, model: str) -> list[str]:
    def chunk(choices: list[dict[str, Any]], usage: Any = None) -> str:
        common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": f"{model}-2026"}
        return json.dumps({**common, "choices": choices, "usage": usage})

    def choice(delta: dict[str, Any], finish_reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "finish_reason": finish_reason}]

    events = [chunk(choice({"content": text})) for text in reply.deltas]
    events.insert(0, chunk(choice({"role": "assistant", "content": ""})))
    if reply.finish_reason:
        events.append(chunk(choice({}, reply.finish_reason)))
    if reply.usage:
        events.append(chunk([], reply.usage))
    return [*events, "[DONE]"]


class MemoryLedger:
    """Implements `Ledger` in lists. Request ids are not looked up; a test sets `earlier` instead."""

    def __init__(self) -> None:
        self.opened: dict[str, Entry] = {}
        self.settled: dict[str, Entry] = {}
        self.settled_twice = 0
        self.earlier: Usage | None = None
        self.away = False
        self.slow = False  # no settlement reaches the disk

    async def open(self, entry: Entry) -> Opened:
        await asyncio.sleep(0)
        if self.away:
            raise LedgerUnavailable("it is away")
        self.opened[entry.id] = entry
        return Opened(entry, self.earlier)

    def settle(self, entry: Entry) -> asyncio.Future[bool]:
        self.settled_twice += entry.id in self.settled
        self.settled.setdefault(entry.id, entry)
        future = asyncio.get_running_loop().create_future()
        if not self.slow:
            future.set_result(True)
        return future


class UnaccountedChatModel:
    """Implements `ChatModel` with an upstream, without a ledger."""

    def __init__(self, upstream: Upstream) -> None:
        self.description = upstream.description
        self.prompt_tokens = upstream.prompt_tokens
        self.estimate = upstream.estimate
        self._upstream = upstream

    async def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[TextDelta | ChatDone, None]:
        async with aclosing(self._upstream.stream(messages, options, deadline=deadline)) as events:
            async for event in events:
                if not isinstance(event, ChatStarted):
                    yield event


class TraceCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP/gRPC collector that keeps every span it gets."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.resource: dict[str, str] = {}
        self.endpoint = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["TraceCollector"]:
        """Listen while the body runs."""
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server  # it has no types
        add(self, server)
        self.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Take a batch."""
        for resource_spans in request.resource_spans:
            self.resource = {pair.key: pair.value.string_value for pair in resource_spans.resource.attributes}
            for scope_spans in resource_spans.scope_spans:
                self.spans.extend(scope_spans.spans)
        return trace_service_pb2.ExportTraceServiceResponse()
