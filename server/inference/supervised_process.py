"""Supervises a child process that serves HTTP: starts it, polls it, restarts it when it dies or hangs, and ends it.

The child must: read its configuration, one JSON line, from standard input (other users can read arguments and
environment); when it is ready, write one JSON line {"address": "127.0.0.1:PORT"} to standard output; answer GET /health
there with 200; end when standard input ends or "parent" is no longer its parent; leave the process group, whose Ctrl-C
is for the server.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from asyncio import StreamReader
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

from server.domain.errors import ModelUnavailable

log = logging.getLogger(__name__)

_MIN_DELAY, _MAX_DELAY = 0.5, 30.0  # seconds between the end of a child and the start of the next
_FAILED_POLLS = 3  # in a row: the child hangs
_KILL_SECONDS = 5.0  # for the kernel to end it
_TAIL_LINES = 20


@dataclass(eq=False, repr=False)  # `config` has a secret
class Supervisor:
    """Keeps one child alive between start() and stop(). `on_change` is called whenever `address` changes.

    Start it from the main thread: the kernel ends the child with the thread that made it.
    """

    name: str
    command: Sequence[str]
    config: Mapping[str, object]
    _: KW_ONLY
    environment: Mapping[str, str]
    on_change: Callable[[], None]
    start_seconds: float = 60.0
    poll_seconds: float = 2.0  # between polls
    answer_seconds: float = 3.0  # for a poll
    address: str | None = field(default=None, init=False)  # "HOST:PORT" while the child is ready
    pid: int | None = field(default=None, init=False)  # of the latest child
    _started: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)

    async def start(self) -> None:
        """Return when the child is ready. Raises ModelUnavailable if it ends or hangs before that."""
        self._task = asyncio.create_task(self._keep_alive())
        started = asyncio.create_task(self._started.wait())
        try:
            await asyncio.wait({self._task, started}, return_when=asyncio.FIRST_COMPLETED)
            if self._task.done():
                self._task.result()
        except BaseException:
            await self.stop()
            raise
        finally:
            started.cancel()

    async def stop(self) -> None:
        """End the child by SIGKILL, which a child that hangs obeys, too: it has nothing to save."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _keep_alive(self) -> None:
        delay = _MIN_DELAY / 2
        while True:
            started = time.monotonic()
            try:
                why = await self._run_once()
            except Exception:  # of any kind, because supervising must go on
                log.exception("%s: supervising failed", self.name)
                why = "supervising failed"
            log.error("%s: %s", self.name, why)
            if not self._started.is_set():
                raise ModelUnavailable(f"{self.name} could not be started; the server's log says why")
            was_stable = time.monotonic() - started > _MAX_DELAY
            delay = _MIN_DELAY if was_stable else min(2 * delay, _MAX_DELAY)
            await asyncio.sleep(delay)

    async def _run_once(self) -> str:
        """Start the child and wait for its end. Returns the reason."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=self.environment
            )
        except OSError as error:
            return f"the process cannot be started: {error}"
        assert process.stderr is not None
        self.pid = process.pid
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        drain = asyncio.create_task(self._drain(process.stderr, tail))
        try:
            why = await self._serve(process)
        finally:
            self._set_address(None)
            await _end(process)
            await asyncio.wait({drain}, timeout=1.0)
            drain.cancel()
        return "\n    ".join([f"{why}; exit status {process.returncode}", *tail])

    async def _serve(self, process: Process) -> str:
        assert process.stdin
        assert process.stdout
        is_ready = False
        try:
            async with asyncio.timeout(self.start_seconds):
                process.stdin.write(json.dumps({**self.config, "parent": os.getpid()}).encode() + b"\n")
                await process.stdin.drain()
                address = str(json.loads(await process.stdout.readline())["address"])
                is_ready = await _is_healthy(address, self.start_seconds)
        except TimeoutError:
            return f"the process was not ready within {self.start_seconds:g} s"
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it wrote no address
        if not is_ready:
            return "the process was never ready"
        self._set_address(address)
        failed_polls = 0
        while failed_polls < _FAILED_POLLS:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 0.1 if failed_polls else self.poll_seconds)
                return "the process ended"
            failed_polls = 0 if await _is_healthy(address, self.answer_seconds) else failed_polls + 1
            # Calls are refused instead of waiting for it.
            self._set_address(None if failed_polls > 1 else address)
        return "the process does not answer"

    def _set_address(self, address: str | None) -> None:
        if address != self.address:
            self.address = address
            if address:
                log.info("%s: ready in process %d", self.name, self.pid)
                self._started.set()
            self.on_change()

    async def _drain(self, stream: StreamReader, tail: deque[str]) -> None:
        while chunk := await stream.read(1 << 16):
            for line in chunk.decode(errors="replace").splitlines():
                log.debug("%s: %s", self.name, line)
                tail.append(line[:500])


async def _is_healthy(address: str, seconds: float) -> bool:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(f"GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
                status_line = await reader.readline()
            finally:
                writer.close()
    except (OSError, ValueError):  # TimeoutError is an OSError; a line without an end is a ValueError
        return False
    return status_line.split()[1:2] == [b"200"]


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    try:
        await asyncio.wait_for(process.wait(), _KILL_SECONDS)
    except TimeoutError:
        log.error("process %d does not end although it was killed", process.pid)
