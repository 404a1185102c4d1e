"""Reads streams of chat: python -m tests.bench.reader sdk|relay ADDRESS CHUNKS PAUSE_MS STREAMS. Prints JSON."""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable

import grpc
import openai
import uvloop
from quintet.v1 import chat_pb2_grpc

from tests.bench.requests import chat

FIRST_TOKEN_RUNS = 50
Read = Callable[[int, int], AsyncIterator[str]]


def sdk(address: str) -> Read:
    """As an application would without us."""
    client = openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="none")

    async def texts(chunks: int, pause_ms: int) -> AsyncIterator[str]:
        stream = await client.chat.completions.create(
            model="bench",
            messages=[{"role": "user", "content": "Hi."}],
            max_completion_tokens=chunks,
            seed=pause_ms or openai.omit,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                yield text

    return texts


def relay(address: str) -> Read:
    """Through our server."""
    stub = chat_pb2_grpc.ChatServiceStub(grpc.aio.insecure_channel(address))

    async def texts(chunks: int, pause_ms: int) -> AsyncIterator[str]:
        async for event in stub.StreamChat(chat(chunks, pause_ms), timeout=60):
            if event.delta.text:
                yield event.delta.text

    return texts


async def _stream(read: Read, chunks: int, pause_ms: int) -> tuple[float, int]:
    """Seconds to the first token, and how many came: a delta may hold several."""
    begun, first, count = time.perf_counter(), 0.0, 0
    async for text in read(chunks, pause_ms):
        first = first or time.perf_counter() - begun
        count += text.count(" token")
    return first, count


async def main(kind: str, address: str, *arguments: str) -> None:
    """Measure and print."""
    chunks, pause_ms, streams = map(int, arguments)
    read = sdk(address) if kind == "sdk" else relay(address)
    await _stream(read, 10, 0)
    firsts = [(await _stream(read, 5, 0))[0] for _ in range(FIRST_TOKEN_RUNS)]
    begun = time.perf_counter()
    found = await asyncio.gather(*(_stream(read, chunks, pause_ms) for _ in range(streams)))
    seconds = time.perf_counter() - begun
    print(
        json.dumps(
            {
                "chunks_per_second": sum(count for _, count in found) / seconds,
                "first_p50_ms": statistics.median(firsts) * 1000,
                "whole": sum(count == chunks for _, count in found),
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
