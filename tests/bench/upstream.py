"""A provider that costs next to nothing: python -m tests.bench.upstream. It prints its port and serves until killed.

It streams as many chunks as the request's `max_completion_tokens` asks for: all at once, or, with a `seed`, one every
so many milliseconds. Every event was encoded before, so that the reader is what is measured.
"""

import asyncio
import json

import uvloop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _event(choices: list[object], usage: dict[str, int] | None = None) -> bytes:
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "bench", "choices": choices}
    data = f"data: {json.dumps({**chunk, 'usage': usage})}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    return _event([{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}])


DELTA = _choice({"content": " token"})
DONE = b"data: [DONE]\n\n"
TAIL = b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            headers = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:] if line)
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            tokens, pause = int(body["max_completion_tokens"]), int(body.get("seed", 0))
            usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
            end = _choice({}, "stop") + _event([], usage) + TAIL
            if pause:
                writer.write(HEAD)
                for _ in range(tokens):
                    writer.write(DELTA)
                    await asyncio.sleep(pause / 1000)
                writer.write(end)
            else:
                writer.write(HEAD + DELTA * tokens + end)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
