"""An OpenAI-compatible endpoint that answers three words at once: python -m tests.campaigns.fuzz.provider."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fakes import read_request

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _event(content: str, finish: str | None, usage: dict[str, int] | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "fuzz", "choices": [choice]}
    data = f"data: {json.dumps({**chunk, 'usage': usage})}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


_USAGE = {"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 11}
_BODY = (
    _event("one ", None)
    + _event("two ", None)
    + _event("three", "stop", _USAGE)
    + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            await read_request(reader)
            writer.write(_HEAD + _BODY)
            await writer.drain()
    writer.close()


async def _main() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def serving() -> Iterator[str]:
    """The base URL of an endpoint in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", __spec__.name], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    asyncio.run(_main())
