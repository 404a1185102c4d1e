"""A real server, callers that send mutated requests, connections that break the protocol, and what is measured."""

import asyncio
import itertools
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.campaigns.fuzz import frames
from tests.campaigns.fuzz.http2 import Connection, Ended, message, request_headers
from tests.campaigns.fuzz.payloads import Payloads
from tests.services import SERVICES

CONNECTIONS, CALLS_A_CONNECTION, BREAKERS = 6, 12, 2
TIMEOUT_SECONDS = 2  # the deadline of every call
HANG_SECONDS = 30.0  # a call or a probe that takes longer is a hang
# What may only come from a fault of the server.
BAD = {grpc.StatusCode.UNKNOWN.value[0], grpc.StatusCode.INTERNAL.value[0], grpc.StatusCode.DATA_LOSS.value[0]}
_WATCHES = re.compile("^Watch")  # they last until their deadline, which is short
# Weights of methods whose calls take as long as thousands of others if they succeed, and of those with few fields.
_SLOW, _SMALL = re.compile("^(Watch|Load|Unload|Reload|SetAlias|Reindex|Compact)"), re.compile("^(Get|List)")
_SLOW_WEIGHT, _SMALL_WEIGHT = 0.05, 0.4
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_HOSTILE_HEADERS = (
    (b"x-request-id", b"\xff\xfe"),
    (b"x-request-id", b"a" * 300),
    (b"authorization", b"Bearer quintet_x"),
    (b"grpc-encoding", b"gzip"),
    (b"grpc-accept-encoding", b"snappy"),
    (b"traceparent", b"00-zz-yy-01"),
    (b"user-agent", b"\x80\x81"),
    (b"grpc-timeout", b"1n"),
)


@dataclass
class Found:
    """What a campaign has seen so far. `faults` are lines for a person; empty means that the server passed."""

    payloads: int = 0
    sent_bytes: int = 0
    breaks: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    by_method: dict[str, Counter[str]] = field(default_factory=dict)
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds since the start, MiB
    probes: list[float] = field(default_factory=list)  # seconds that a health check took
    faults: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def sent(self) -> int:
        """Mutated payloads: those of calls, and one for each connection that was broken below them."""
        return self.payloads + self.breaks

    def fault(self, kind: str, line: str) -> None:
        """Note a fault; of each kind the first few are shown."""
        self.kinds[kind] += 1
        if self.kinds[kind] <= 5:
            self.faults.append(f"{kind}: {line}")


class Campaign:
    """Sends requests until enough were sent or the time is over."""

    def __init__(self, address: str, process: int, log: Path, *, seed: int, payloads: int, seconds: float) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))
        self._process = process
        self._log = log
        self._seed = seed
        self._wanted = payloads
        self._seconds = seconds
        self._methods = [method for service in SERVICES.values() for method in service.methods]
        self._weights = list(itertools.accumulate(_weight(each.name) for each in self._methods))
        self._begun = time.monotonic()
        self.found = Found(by_method={method.full_name: Counter() for method in self._methods})

    @property
    def over(self) -> bool:
        """Whether to stop: the time is the bound, so that a slow machine ends too."""
        return self.found.sent >= self._wanted or time.monotonic() - self._begun > self._seconds

    async def run(self, report: Callable[[str], None]) -> Found:
        """Send everything, then look at the log."""
        tasks = [
            *(self._call_on_a_connection(number) for number in range(CONNECTIONS)),
            *(self._break(number) for number in range(BREAKERS)),
            self._watch(report),
        ]
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)
        await self._probe()
        self._read_log()
        return self.found

    async def _call_on_a_connection(self, number: int) -> None:
        payloads = Payloads(self._seed * 1_000 + number)
        chance = random.Random(self._seed * 1_000 + number)
        while not self.over:
            try:
                _, connection = await asyncio.get_running_loop().create_connection(Connection, *self._address)
            except OSError as error:
                self.found.fault("refused", f"no connection: {error}")
                return
            calls = [self._call(connection, payloads, chance) for _ in range(CALLS_A_CONNECTION)]
            await asyncio.gather(*calls)
            connection.close()

    async def _call(self, connection: Connection, payloads: Payloads, chance: random.Random) -> None:
        """Calls of random methods, one after another, for some time on this connection."""
        for _ in range(2_000):
            if self.over or connection.closed.is_set():
                return
            (method,) = chance.choices(self._methods, cum_weights=self._weights)
            messages = payloads.make(method)
            body = b"".join(message(each) for each in messages)
            cancel = chance.choice((0.0, 0.001, 0.05)) if chance.random() < 0.02 else None
            headers = self._headers(method, chance)
            call = connection.call(headers, body, cancel_after=cancel, ends=chance.random() > 0.0005)
            try:
                ended = await asyncio.wait_for(call, HANG_SECONDS)
            except TimeoutError:
                self.found.fault("hang", f"{method.full_name} did not end: {body[:200]!r}")
                continue
            self.found.payloads += max(1, len(messages))
            self.found.sent_bytes += len(body)
            self._judge(method, body, ended, cancelled=cancel is not None)

    def _headers(self, method: MethodDescriptor, chance: random.Random) -> list[tuple[bytes, bytes]]:
        timeout = b"100m" if _WATCHES.match(method.name) else b"%dS" % TIMEOUT_SECONDS
        extra = [(b"grpc-timeout", timeout)]
        if chance.random() < 0.03:
            extra.append(chance.choice(_HOSTILE_HEADERS))
        return request_headers(f"/{method.containing_service.full_name}/{method.name}", extra)

    def _judge(self, method: MethodDescriptor, body: bytes, ended: Ended, *, cancelled: bool) -> None:
        name = _NAMES.get(ended.status, str(ended.status)) if ended.status is not None else f"reset {ended.reset}"
        if ended.status is None and ended.reset is None:
            name = "cancelled" if cancelled else "connection closed"
        self.found.codes[name] += 1
        self.found.by_method[method.full_name][name] += 1
        if ended.status in BAD:
            self.found.fault(name, f"{method.full_name}: {ended.text}: {body[:300]!r}")

    async def _break(self, number: int) -> None:
        chance = random.Random(self._seed * 1_000 + 500 + number)
        while not self.over:
            method = chance.choice(self._methods)
            path = f"/{method.containing_service.full_name}/{method.name}"
            try:
                self.found.sent_bytes += await frames.attack(self._address, chance, path)
            except OSError as error:
                self.found.fault("refused", f"no connection: {error}")
                return
            self.found.breaks += 1

    async def _watch(self, report: Callable[[str], None]) -> None:
        next_report = 0.0
        while not self.over:
            await self._probe()
            now = time.monotonic() - self._begun
            self.found.memory.append((now, resident_mib(self._process)))
            if now >= next_report:
                found = self.found
                report(
                    f"{now:4.0f} s  {found.payloads:9,} payloads  {found.breaks:6,} broken connections  "
                    f"{found.memory[-1][1]:5.0f} MiB  health {found.probes[-1] * 1000:4.0f} ms  "
                    f"{sum(found.kinds.values())} faults"
                )
                next_report += 30
            await asyncio.sleep(1)

    async def _probe(self) -> None:
        """A health check, on a connection of its own."""
        begun = time.monotonic()
        async with grpc.aio.insecure_channel(":".join(map(str, self._address))) as channel:
            try:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=HANG_SECONDS)
            except grpc.aio.AioRpcError as error:
                self.found.fault("health", f"{error.code().name}: {error.details()}")
        self.found.probes.append(time.monotonic() - begun)

    def _read_log(self) -> None:
        for line in self._log.read_text(errors="replace").splitlines():
            if "Traceback" in line or " ERROR " in line:
                self.found.fault("log", line[:300])


def _weight(method: str) -> float:
    return _SLOW_WEIGHT if _SLOW.match(method) else _SMALL_WEIGHT if _SMALL.match(method) else 1.0


def resident_mib(process: int) -> float:
    """Resident memory of a process and its children, in MiB."""
    children = [each for task in Path(f"/proc/{process}/task").glob("*/children") for each in task.read_text().split()]
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in (process, *children))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
