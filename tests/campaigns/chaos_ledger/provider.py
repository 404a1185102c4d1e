"""An endpoint of the OpenAI protocol that misbehaves by plan, and writes down what it served, as a provider bills it.

A token is a word here, for the prompt and for the answer. What a request is served is decided by the words of its last
message: "call-17 cut" is the call 17, whose stream is cut in the middle.
"""

import asyncio
import contextlib
import json
import random
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tests.fakes import read_request

PAUSE_SECONDS = 0.004  # between two tokens
_CALL = re.compile(r"(call-\d+-\d+) (\w+)")


class Manner(StrEnum):
    """How a call is treated by the first provider. The second one always behaves."""

    WELL = "well"
    NO_USAGE = "nousage"  # a stream without the numbers
    WRONG_USAGE = "wrongusage"  # with numbers that cannot be
    CUT = "cut"  # the connection breaks in the middle of the answer
    BROKEN = "broken"  # HTTP 500
    FULL = "full"  # HTTP 429
    HANG_UP = "hangup"  # the connection is closed without an answer; the prompt is billed


@dataclass
class Served:
    """What the provider counted for one request. `complete` is true if the end of the answer was sent, `lost` if
    nothing was sent.
    """

    prompt_tokens: int
    completion_tokens: int = 0
    complete: bool = False
    reported_usage: bool = False
    lost: bool = False


class Provider:
    """`served` has what was served, by call; a call that was sent again has several entries."""

    def __init__(self, name: str, seed: int, *, misbehaves: bool) -> None:
        self.name = name
        self.key = f"sk-{name}-{seed:x}"
        self.base_url = ""
        self.served: defaultdict[str, list[Served]] = defaultdict(list)
        self.refused = 0
        self._misbehaves = misbehaves
        self._random = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Provider"]:
        """Listen while the body runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await read_request(reader)
            gone = asyncio.create_task(reader.read())  # ends when the client goes away
            answer = asyncio.create_task(self._answer(writer, request.headers, request.body))
            await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
            for task in (gone, answer):
                task.cancel()
            await asyncio.gather(gone, answer, return_exceptions=True)
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, headers: dict[str, str], body: dict[str, Any]) -> None:
        if headers.get("authorization") != f"Bearer {self.key}":
            await _refuse(writer, 401, {})
            return
        prompt = " ".join(str(message["content"]) for message in body["messages"])
        found = _CALL.search(str(body["messages"][-1]["content"]))
        assert found, "every call of the campaign has its name in its last message"
        call, manner = found[1], Manner(found[2]) if self._misbehaves else Manner.WELL
        if manner is Manner.HANG_UP:
            self.served[call].append(Served(len(prompt.split()), lost=True))
        elif manner in (Manner.BROKEN, Manner.FULL):
            self.refused += 1
            await _refuse(writer, 500 if manner is Manner.BROKEN else 429, {"Retry-After": "1"})
        else:
            await self._stream(writer, call, manner, len(prompt.split()), int(body["max_completion_tokens"]))

    async def _stream(self, writer: asyncio.StreamWriter, call: str, manner: Manner, prompt: int, most: int) -> None:
        length = self._random.randint(1, min(most, 60))
        served = Served(prompt)
        self.served[call].append(served)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\n"
        )
        for number in range(length):
            await asyncio.sleep(PAUSE_SECONDS)
            if manner is Manner.CUT and number > length // 2:
                return
            served.completion_tokens += 1
            await _event(writer, {"choices": [{"index": 0, "delta": {"content": f"word{number} "}}]})
        await _event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if manner is not Manner.NO_USAGE:
            wrong = manner is Manner.WRONG_USAGE
            usage = {"prompt_tokens": -1 if wrong else prompt, "completion_tokens": "many" if wrong else length}
            served.reported_usage = not wrong
            await _event(writer, {"choices": [], "usage": usage})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()
        served.complete = True


async def _event(writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "words-2026", **content}
    data = f"data: {json.dumps(chunk)}\n\n".encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


async def _refuse(writer: asyncio.StreamWriter, status: int, headers: dict[str, str]) -> None:
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: 2\r\n{extra}\r\n{{}}".encode()
    )
    await writer.drain()
