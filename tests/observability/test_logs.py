"""The log as text and as JSON."""

import asyncio
import json
import logging
import time
from collections.abc import Iterator

import pytest
from grpc import StatusCode

from server.domain.context import Context, UpstreamTrace, set_current
from server.observability.logs import JsonLines, TextLines
from server.rpc.method_stats import Method
from tests.campaigns.fuzz.http2 import Connection, message, request_headers
from tests.conftest import ServerProcess


class Traced:
    """A trace with an id and nothing else."""

    id = "0af7651916cd43dd8448eb211c80319c"

    def part(self, name: str, arrived: float, queue: float, compute: float) -> None:
        raise NotImplementedError

    def upstream(self, provider: str, model: str, url: str) -> UpstreamTrace:
        raise NotImplementedError

    def end(self, call: Context, code: str, reason: str) -> None:
        raise NotImplementedError


class Kept(logging.Handler):
    """Keeps the lines of the server's log in one format."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def kept() -> Iterator[tuple[list[str], list[str]]]:
    """What is logged during the test, as text and as JSON."""
    log = logging.getLogger("server")
    handlers, level = [Kept(TextLines()), Kept(JsonLines())], log.level
    for handler in handlers:
        log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield handlers[0].lines, handlers[1].lines
    for handler in handlers:
        log.removeHandler(handler)
    log.setLevel(level)


async def test_a_call_in_both_forms(kept: tuple[list[str], list[str]]) -> None:
    begun = time.monotonic() - 1
    call = Context("/quintet.v1.ChatService/Chat", "abc", 1e9, True, begun, queue_seconds=0.25, trace=Traced())
    set_current(call)
    Method(call.method, 1).end(call, StatusCode.UNAVAILABLE, "UPSTREAM_FAILED")
    (text,), (machine,) = kept
    assert " INFO server.access [abc] quintet.v1.ChatService/Chat UNAVAILABLE UPSTREAM_FAILED " in text
    line = json.loads(machine)
    assert (line["level"], line["logger"], line["request_id"]) == ("INFO", "server.access", "abc")
    assert line["trace_id"] == Traced.id
    assert (line["method"], line["code"], line["reason"]) == (
        "quintet.v1.ChatService/Chat",
        "UNAVAILABLE",
        "UPSTREAM_FAILED",
    )
    assert line["queue_ms"] == 250
    assert line["ms"] >= 1000
    assert line["tenant"] == "local"
    assert line["time"].endswith("+00:00")


async def test_an_object_is_one_line_whatever_it_says(kept: tuple[list[str], list[str]]) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logging.getLogger("server.test").exception('a "quoted"\nmessage: %s', "é")
    (line,) = kept[1]
    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed["message"] == 'a "quoted"\nmessage: é'
    assert "Traceback" in parsed["exception"]
    assert "second" in parsed["exception"]
    assert "request_id" not in parsed
    assert "[-] a " in kept[0][0]


def test_a_client_cannot_fill_the_log_with_tracebacks(server: ServerProcess) -> None:
    async def calls() -> None:
        host, _, port = server.address.rpartition(":")
        for extra in ([(b"x-request-id", b"\xff")], [(b"user-agent", b"\x80")]):
            _, connection = await asyncio.get_running_loop().create_connection(Connection, host, int(port))
            headers = request_headers("/quintet.v1.ModelService/GetServerInfo", extra)
            assert (await connection.call(headers, message(b""))).status == 0
            connection.close()

    before = len(server.log.read_text())
    asyncio.run(calls())
    assert "cygrpc" not in server.log.read_text()[before:]
