"""The supervisor with small children that behave, crash, hang, or never get ready."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable

import pytest

from server.domain.errors import ModelUnavailable
from server.inference import supervised_process as supervisor_module
from server.inference.supervised_process import Supervisor
from tests.waiting import is_alive, until

# Serves /health with the status that is in its configuration, until its standard input ends.
CHILD = """
import http.server, json, os, sys, threading
config = json.loads(sys.stdin.readline())
assert config["parent"] == os.getppid()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(config["status"]); self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("loading", os.environ, file=sys.stderr)
print(json.dumps({"address": "127.0.0.1:%d" % server.server_port}), flush=True)
sys.stdin.read()
"""


@contextlib.asynccontextmanager
async def supervised(
    code: str, status: int = 200, on_change: Callable[[], None] = lambda: None, start_seconds: float = 10.0
) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(
        "the child",
        [sys.executable, "-c", code],
        {"status": status},
        environment={"ONLY": "this"},
        on_change=on_change,
        start_seconds=start_seconds,
        poll_seconds=0.3,
        answer_seconds=0.3,
    )
    try:
        yield supervisor
    finally:
        await supervisor.stop()


async def test_life_and_end(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str | None] = []
    with caplog.at_level(logging.DEBUG):
        async with supervised(CHILD, on_change=lambda: seen.append(supervisor.address)) as supervisor:
            await supervisor.start()
            address, pid = supervisor.address, supervisor.pid
            assert address
            assert pid
            assert is_alive(pid)
    assert seen == [address, None]
    assert not is_alive(pid)
    assert "loading" in caplog.text
    assert "PATH" not in caplog.text.partition("environ")[2].partition("\n")[0]


async def test_child_that_dies_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    async with supervised(CHILD) as supervisor:
        await supervisor.start()
        first = supervisor.pid
        assert first
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.address is None)
        await until(lambda: supervisor.address)
        assert supervisor.pid != first
    assert "the process ended; exit status -9" in caplog.text
    assert "loading" in caplog.text  # the last lines of the child


async def test_child_that_hangs_is_replaced() -> None:
    async with supervised(CHILD) as supervisor:
        await supervisor.start()
        first = supervisor.pid
        assert first
        os.kill(first, signal.SIGSTOP)
        await until(lambda: supervisor.pid != first and supervisor.address)
        assert not is_alive(first)


async def test_child_that_hangs_is_not_ready_and_does_not_hold_the_stop() -> None:
    async with supervised(CHILD) as supervisor:
        await supervisor.start()
        assert supervisor.pid
        os.kill(supervisor.pid, signal.SIGSTOP)
        await until(lambda: supervisor.address is None)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    assert not is_alive(supervisor.pid)


# Healthy once, and then what its configuration says in place of the status.
TURNS = CHILD.replace(
    "self.send_response",
    "self.__class__.asked = asked = getattr(self, 'asked', 0) + 1\n"
    "        odd = b'x' * (1 << 20) if asked == 2 else b'HTTP/1.1 500 no\\r\\n\\r\\n'\n"
    "        if asked > 1: self.wfile.write(odd); return\n"
    "        self.send_response",
)


async def test_child_that_answers_nonsense_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async with supervised(TURNS) as supervisor:
        await supervisor.start()
        first = supervisor.pid
        await until(lambda: supervisor.pid != first and supervisor.address)
    assert "the process does not answer" in caplog.text


async def test_back_off_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_MIN_DELAY", 0.1)
    waits: list[float] = []
    async with supervised(CHILD) as supervisor:
        await supervisor.start()
        for _ in range(3):
            pid = supervisor.pid
            assert pid
            os.kill(pid, signal.SIGKILL)
            await until(lambda: supervisor.address is None)
            dead = time.monotonic()
            await until(lambda: supervisor.pid != pid)  # noqa: B023
            waits.append(time.monotonic() - dead)
            await until(lambda: supervisor.address)
    assert [wait >= least for wait, least in zip(waits, (0.08, 0.16, 0.32), strict=True)] == [True] * 3
    assert waits[0] < 0.4


@pytest.mark.parametrize(
    ("code", "status", "why"),
    [
        ("import sys; sys.exit('no model here')", 200, "no model here"),
        ("print('not json', flush=True); input()", 200, "never ready"),
        ("print('[]', flush=True)", 200, "never ready"),
        (CHILD, 503, "never ready"),
        ("import time; time.sleep(60)", 200, "not ready within"),
    ],
)
async def test_child_that_cannot_start(code: str, status: int, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async with supervised(code, status, start_seconds=1.0 if "sleep" in code else 10.0) as supervisor:
        with pytest.raises(ModelUnavailable, match="the child could not be started"):
            await supervisor.start()
        assert supervisor.pid
        assert not is_alive(supervisor.pid)
    assert why in caplog.text


async def test_cancelled_start_leaves_no_child() -> None:
    async with supervised("import time; time.sleep(60)") as supervisor:
        start = asyncio.create_task(supervisor.start())
        await until(lambda: supervisor.pid)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert supervisor.pid
        assert not is_alive(supervisor.pid)


async def test_command_that_does_not_exist() -> None:
    supervisor = Supervisor("the child", ["/nonexistent"], {}, environment={}, on_change=lambda: None)
    with pytest.raises(ModelUnavailable):
        await supervisor.start()
