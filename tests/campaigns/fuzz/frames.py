"""Connections that break HTTP/2 below gRPC: each sends its bytes, reads for a moment and goes away."""

import asyncio
import contextlib
import random
import struct
from collections.abc import Callable

from tests.campaigns.fuzz import http2
from tests.campaigns.fuzz.http2 import END_HEADERS, END_STREAM, PREFACE, frame, header_block, message, request_headers

READ_SECONDS = 0.05
_LARGEST = 200_000  # bytes that one connection sends
_START = PREFACE + frame(http2.SETTINGS, 0, 0)


def _headers(path: str, *extra: tuple[bytes, bytes]) -> bytes:
    return header_block(request_headers(path, list(extra)))


def _random_frames(chance: random.Random, path: str) -> bytes:
    """Any type, flags and stream, with a payload of any length."""
    return _START + b"".join(
        frame(chance.randrange(16), chance.randrange(256), chance.choice((0, 1, 2, 3, 2**31 - 1)), _noise(chance))
        for _ in range(chance.randint(1, 30))
    )


def _flipped(chance: random.Random, path: str) -> bytes:
    """Two good calls with some bits changed, the preface included."""
    call = frame(http2.HEADERS, END_HEADERS, 1, _headers(path)) + frame(http2.DATA, END_STREAM, 1, message(b"\n\1a"))
    sent = bytearray(_START + call + call)
    for _ in range(chance.randint(1, 8)):
        sent[chance.randrange(len(sent))] ^= 1 << chance.randrange(8)
    return bytes(sent)


def _wrong_lengths(chance: random.Random, path: str) -> bytes:
    """A frame that says another length than it has."""
    length = chance.choice((0, 1, 8, 16_385, 2**24 - 1))
    kind = chance.randrange(10)
    return _START + struct.pack(">I", length)[1:] + bytes((kind, chance.randrange(256), 0, 0, 0, 1)) + _noise(chance)


def _wrong_preface(chance: random.Random, path: str) -> bytes:
    return chance.choice(
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", PREFACE[:10], _noise(chance))
    )


def _wrong_headers(chance: random.Random, path: str) -> bytes:
    """Pseudo-headers twice, missing, unknown or late; names and values that HTTP/2 forbids; wrong paths."""
    headers = request_headers(chance.choice((path, "", "/", "//", path + "x", "/" + "a" * 3_000)), [])
    for _ in range(chance.randint(1, 4)):
        name = chance.choice((b":path", b":authority", b":x", b"Upper", b"", b"a b", b"te", b"grpc-timeout", b"x-bin"))
        value = chance.choice((b"", b"\0", b"\r\n", b"5S", b"-1S", b"99999999999999H", b"*&", b"\xff" * 40))
        headers.insert(chance.randint(0, len(headers)), (name, value))
    if chance.random() < 0.5:
        del headers[chance.randrange(len(headers))]
    sent = frame(http2.HEADERS, END_HEADERS, 1, header_block(headers))
    return _START + sent + frame(http2.DATA, END_STREAM, 1, message(b""))


def _broken_compression(chance: random.Random, path: str) -> bytes:
    """Header blocks that refer to entries that do not exist, change the table's size, or are Huffman noise."""
    block = chance.choice((b"\xff\xff\xff\xff\x0f", b"\x3f\xe1\xff\xff\xff\x0f", b"\x00\x8a" + _noise(chance)))
    return _START + frame(http2.HEADERS, END_HEADERS | END_STREAM, 1, _headers(path) + block * chance.randint(1, 50))


def _endless_headers(chance: random.Random, path: str) -> bytes:
    """Continuations without an end."""
    part = header_block([(b"x-" + bytes((97 + chance.randrange(26),)), b"a" * 1_000)]) * 4
    more = frame(http2.CONTINUATION, 0, 1, part) * chance.randint(1, 40)
    return _START + frame(http2.HEADERS, 0, 1, _headers(path)) + more


def _floods(chance: random.Random, path: str) -> bytes:
    """Frames that ask for an answer, or for nothing, a thousand times."""
    kind, payload, stream = chance.choice(
        (
            (http2.PING, b"12345678", 0),
            (http2.SETTINGS, b"", 0),
            (http2.SETTINGS, struct.pack(">HI", 0x4, 2**31 - 1) * 5, 0),
            (http2.DATA, b"", 1),
            (http2.PRIORITY, struct.pack(">IB", 3, 1), 1),
            (http2.WINDOW_UPDATE, struct.pack(">I", 2**31 - 1), 0),
            (http2.WINDOW_UPDATE, struct.pack(">I", 0), 1),
        )
    )
    return _START + frame(http2.HEADERS, END_HEADERS, 1, _headers(path)) + frame(kind, 0, stream, payload) * 1_000


def _rapid_resets(chance: random.Random, path: str) -> bytes:
    """Calls that are cancelled as soon as they begin."""
    block = _headers(path)
    return _START + b"".join(
        frame(http2.HEADERS, END_HEADERS, number, block) + frame(http2.RST_STREAM, 0, number, struct.pack(">I", 8))
        for number in range(1, 2 * chance.randint(1, 200), 2)
    )


def _wrong_streams(chance: random.Random, path: str) -> bytes:
    """Streams of the server, of the past, and after they ended; data that is padded more than it is long."""
    numbers = [chance.choice((0, 1, 2, 4, 5, 7, 99)) for _ in range(6)]
    return _START + b"".join(
        frame(http2.HEADERS, END_HEADERS | chance.choice((0, END_STREAM)), number, _headers(path))
        + frame(http2.DATA, chance.choice((0x8, 0x9)), number, b"\xff" + _noise(chance)[:10])
        for number in numbers
    )


def _wrong_prefixes(chance: random.Random, path: str) -> bytes:
    """Messages whose prefix lies: compressed where they are not, longer or shorter than what follows."""
    prefix = struct.pack(">BI", chance.choice((0, 1, 2, 255)), chance.choice((0, 1, 5, 2**20, 2**31, 2**32 - 1)))
    extra = [(b"grpc-encoding", chance.choice((b"gzip", b"identity", b"snappy", b"")))] if chance.random() < 0.5 else []
    sent = frame(http2.HEADERS, END_HEADERS, 1, _headers(path, *extra))
    return _START + sent + frame(http2.DATA, chance.choice((0, END_STREAM)), 1, prefix + _noise(chance))


def _noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 4, 5, 8, 9, 64, 1_000)))


ATTACKS: tuple[Callable[[random.Random, str], bytes], ...] = (
    *(_random_frames, _flipped, _wrong_lengths, _wrong_preface, _wrong_headers, _broken_compression),
    *(_endless_headers, _floods, _rapid_resets, _wrong_streams, _wrong_prefixes),
)


async def attack(address: tuple[str, int], chance: random.Random, path: str) -> int:
    """Open one connection and break it; returns how many bytes were sent. Raises OSError if the port is closed."""
    sent = chance.choice(ATTACKS)(chance, path)[:_LARGEST]
    reader, writer = await asyncio.open_connection(*address)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(sent)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READ_SECONDS):
                    while await reader.read(65_536):
                        pass
    finally:
        writer.transport.abort()
    return len(sent)
