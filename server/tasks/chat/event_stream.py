"""Reading the body of an answer: server-sent events, or JSON although a stream was asked for.

The reader is as lenient as the clients that endpoints are tried with, for instance about blank lines between events.
What it cannot read is an error: it never ends an answer as if that were complete.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Final

# An answer has at most 4096 tokens, which is far less text. A whole answer in one event may have log probabilities.
MAX_EVENT_BYTES = 16 * 1024 * 1024
DONE: Final = "[DONE]"  # the value that stands for the endpoint's end of the stream
_BOM = b"\xef\xbb\xbf"
_KEEP_ALIVE = {"ping", "keep-alive", "keepalive", "heartbeat"}
_DRAIN_SECONDS, _DRAIN_BYTES = 0.1, 64 * 1024
_DECODER = json.JSONDecoder(strict=False)  # some endpoints send control characters as they are


class UnreadableStream(ValueError):
    """The endpoint sent what is neither server-sent events with JSON nor JSON. The message quotes nothing of it."""


async def values_of(pieces: AsyncIterator[bytes]) -> AsyncGenerator[object, None]:
    """The JSON values of a body, in order, then DONE if the endpoint said that the answer is complete.

    Errors that are events come as objects with a key "error". Raises UnreadableStream.
    """
    first = await _beginning(pieces)
    if first.startswith((b"{", b"[")):
        for value in _concatenated(await _whole(first, pieces)):
            yield value
        yield DONE
        return
    lines, events = _Lines(), _Events()
    for value in events.feed(lines.feed(first)):
        yield value
    while not events.is_done and (piece := await anext(pieces, None)) is not None:
        for value in events.feed(lines.feed(piece)):
            yield value
    if events.is_done:
        await _drain(pieces)
    else:
        for value in events.feed([*lines.rest(), b""]):
            yield value


async def _beginning(pieces: AsyncIterator[bytes]) -> bytes:
    """The first bytes without a byte order mark and white space; at least three, unless the body ends before."""
    first = b""
    async for piece in pieces:
        first = (first + piece).lstrip()
        if len(first) >= len(_BOM):
            first = first.removeprefix(_BOM).lstrip()
            if first:
                break
    return first


async def _whole(first: bytes, pieces: AsyncIterator[bytes]) -> str:
    parts, size = [first], len(first)
    async for piece in pieces:
        parts.append(piece)
        size += len(piece)
        _check_size(size)
    return b"".join(parts).decode("utf-8", "replace")


async def _drain(pieces: AsyncIterator[bytes]) -> None:
    """Read what follows the end, usually nothing, so that the connection can be used again."""
    size = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for piece in pieces:
                size += len(piece)
                if size > _DRAIN_BYTES:
                    return
    except Exception:  # the answer is complete, and the connection is not used again
        return


class _Lines:
    """Splits bytes into lines that end with LF, CRLF or CR."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends."""
        if b"\n" not in piece and b"\r" not in piece:
            self._begin(piece)
            return []
        if self._begun:
            piece = b"".join((*self._begun, piece))
            self._begun, self._size = [], 0
        *lines, last = piece.splitlines(keepends=True)
        if last.endswith(b"\n"):
            lines.append(last)
        else:  # after CR, LF may follow
            self._begin(last)
        return [line.rstrip(b"\r\n") for line in lines]

    def rest(self) -> list[bytes]:
        return b"".join(self._begun).splitlines()

    def _begin(self, piece: bytes) -> None:
        self._begun.append(piece)
        self._size += len(piece)
        _check_size(self._size)


class _Events:
    """Reads the values of events' data. A value ends with its line or, if it has several, with its event."""

    def __init__(self) -> None:
        self.is_done = False
        self._is_error = False
        self._data: list[str] = []
        self._size = 0

    def feed(self, lines: list[bytes]) -> Iterator[object]:
        """Values of complete lines, DONE as the last one."""
        for line in lines:
            if not line:
                yield from self._end_of_event()
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                yield from self._add(value)
            elif name == b"error":  # llama.cpp until 2024
                self._is_error = True
                yield from self._add(value)
            elif name == b"event":
                self._is_error = value.strip() == b"error"
            if self.is_done:
                return

    def _add(self, value: bytes) -> Iterator[object]:
        text = value.decode("utf-8", "replace")
        if not self._data:
            if text.lstrip().startswith(DONE):
                self.is_done = True
                yield DONE
                return
            try:
                yield self._marked(_DECODER.decode(text))
                return
            except RecursionError as error:
                raise UnreadableStream("nested too deeply") from error
            except ValueError:
                self._size = 0  # it may go on in the next line
        self._data.append(text)
        self._size += len(text)
        _check_size(self._size)

    def _end_of_event(self) -> Iterator[object]:
        data = "\n".join(self._data).strip()
        self._data = []
        if data and self._is_error:
            yield self._marked(data)
        elif data and data.lower() not in _KEEP_ALIVE:
            for found in _concatenated(data):
                yield self._marked(found)
        self._is_error = False

    def _marked(self, found: object) -> object:
        is_marked = not self._is_error or (isinstance(found, dict) and found.get("error"))
        return found if is_marked else {"error": found}


def _concatenated(text: str) -> Iterator[object]:
    """One JSON value, or several in a row as NDJSON has them."""
    position = 0
    while position < len(text):
        try:
            found, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise UnreadableStream("not JSON") from error
        yield found
        while position < len(text) and text[position].isspace():
            position += 1


def _check_size(size: int) -> None:
    if size > MAX_EVENT_BYTES:
        raise UnreadableStream(f"an event of more than {MAX_EVENT_BYTES} bytes")
