"""The least HTTP/2 that sends gRPC calls as they are, well-formed or not, and hears how each ended.

A library would refuse to send what a fuzzer must send. The dynamic table of header compression is switched off, so a
block of headers means the same at any time.
"""

import asyncio
import struct
from dataclasses import dataclass, field
from typing import Any

from hpack import Decoder, HPACKError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
CANCEL = 8
_LARGEST_FRAME = 16_384
_MOST_WINDOW = 2**31 - 1
_INITIAL_WINDOW = 65_535


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame. Nothing is checked."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def header_block(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Literals that are neither indexed nor Huffman coded."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in headers)


def request_headers(path: str, extra: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a gRPC call."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"127.0.0.1"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *extra,
    ]


def message(payload: bytes) -> bytes:
    """A payload with gRPC's prefix: not compressed, and its length."""
    return struct.pack(">BI", 0, len(payload)) + payload


@dataclass(slots=True)
class Ended:
    """How a call ended: a status, or a reset without one, or the end of the connection (neither)."""

    status: int | None = None
    reset: int | None = None
    text: str = ""


@dataclass(slots=True)
class _Stream:
    ended: asyncio.Future[Ended]
    window: int
    result: Ended = field(default_factory=Ended)


class Connection(asyncio.Protocol):
    """One connection with many calls. `closed` is set when the server or this side has closed it.

    The server may send `window` bytes on each call, and no more: a client that does not read.
    """

    def __init__(self, *, window: int = _MOST_WINDOW) -> None:
        self._settings = struct.pack(">HIHI", 0x1, 0, 0x4, window)  # no header table
        self.closed = asyncio.Event()
        self._ready = asyncio.Event()  # the server knows our settings, or is gone
        self._transport: Any = None
        self._buffer = bytearray()
        self._block = b""
        self._next_stream = 1
        self._streams: dict[int, _Stream] = {}
        self._windows_grew = asyncio.Event()
        self._window = self._stream_window = _INITIAL_WINDOW
        self._decoder = Decoder()
        self._known_blocks: dict[bytes, list[tuple[bytes, bytes]]] = {}

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        grow = struct.pack(">I", _MOST_WINDOW - _INITIAL_WINDOW)
        transport.write(PREFACE + frame(SETTINGS, 0, 0, self._settings) + frame(WINDOW_UPDATE, 0, 0, grow))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()
        self._ready.set()
        self._windows_grew.set()
        for stream in self._streams.values():
            if not stream.ended.done():
                stream.ended.set_result(stream.result)
        self._streams.clear()

    def close(self) -> None:
        self._transport.close()

    async def call(
        self, headers: list[tuple[bytes, bytes]], body: bytes, *, cancel_after: float | None = None, ends: bool = True
    ) -> Ended:
        """Send a call and wait for its end. `ends` says whether the request does; a cancelled call ends at once."""
        await self._ready.wait()
        if self.closed.is_set():
            return Ended()
        number, self._next_stream = self._next_stream, self._next_stream + 2
        stream = self._streams[number] = _Stream(asyncio.get_running_loop().create_future(), self._stream_window)
        self._transport.write(frame(HEADERS, END_HEADERS, number, header_block(headers)))
        await self._send(number, stream, body, ends)
        if cancel_after is not None:
            await asyncio.wait([stream.ended], timeout=cancel_after)
            if self._streams.pop(number, None) and not self.closed.is_set():
                self._transport.write(frame(RST_STREAM, 0, number, struct.pack(">I", CANCEL)))
            return stream.result
        return await stream.ended

    async def _send(self, number: int, stream: _Stream, body: bytes, ends: bool) -> None:
        at = 0
        while True:
            room = min(len(body) - at, _LARGEST_FRAME, self._window, stream.window)
            if room > 0 or at == len(body):
                last = ends and at + room == len(body)
                self._transport.write(frame(DATA, END_STREAM if last else 0, number, body[at : at + room]))
                at += room
                self._window -= room
                stream.window -= room
                if at == len(body):
                    return
            else:
                self._windows_grew.clear()
                await self._windows_grew.wait()  # also set when the stream or the connection ends
            if stream.ended.done() or self.closed.is_set():
                return

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= 9:
            length = int.from_bytes(self._buffer[at : at + 3], "big")
            if len(self._buffer) - at < 9 + length:
                break
            kind, flags, number = struct.unpack_from(">BBI", self._buffer, at + 3)
            self._receive(kind, flags, number, bytes(self._buffer[at + 9 : at + 9 + length]))
            at += 9 + length
        del self._buffer[:at]

    def _receive(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        stream = self._streams.get(number)
        if kind in (HEADERS, CONTINUATION):
            self._block += payload
            if flags & END_HEADERS:
                if stream:
                    self._read_headers(stream)
                self._block = b""
        elif kind == RST_STREAM and stream:
            stream.result.reset = int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, at)
                if name == 0x4:
                    self._stream_window = value
            self._transport.write(frame(SETTINGS, ACK, 0))
        elif kind == SETTINGS:
            self._ready.set()
        elif kind == PING and not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            grown = int.from_bytes(payload, "big")
            if number == 0:
                self._window += grown
            elif stream:
                stream.window += grown
            self._windows_grew.set()
        if stream and ((kind in (HEADERS, DATA) and flags & END_STREAM) or kind == RST_STREAM):
            del self._streams[number]
            self._windows_grew.set()
            if not stream.ended.done():
                stream.ended.set_result(stream.result)

    def _read_headers(self, stream: _Stream) -> None:
        headers = self._known_blocks.get(self._block)
        if headers is None:
            try:
                headers = list(self._decoder.decode(self._block, raw=True))
            except HPACKError as error:
                stream.result.text = f"headers that cannot be read: {error}"
                return
            if len(self._known_blocks) < 1_000:
                self._known_blocks[self._block] = headers
        for name, value in headers:
            if name == b"grpc-status":
                stream.result.status = int(value)
            elif name == b"grpc-message":
                stream.result.text = value.decode(errors="replace")


def _string(value: bytes) -> bytes:
    """A length in a prefix of seven bits, and the string (RFC 7541, 5.2)."""
    length = len(value)
    if length < 127:
        return bytes((length,)) + value
    length -= 127
    made = bytearray((127,))
    while length > 127:
        made.append(length & 127 | 128)
        length >>= 7
    return bytes(made) + bytes((length,)) + value
