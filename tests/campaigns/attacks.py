"""What clients can cost a server that has no models: python -m tests.campaigns.attacks [--root CHECKOUT].

Each attack meets a new server, once without an API key and once with one. The table shows the server's memory in MiB
before, at the most, and 5 s after the attack; health checks of another process meanwhile; and how the calls ended.
"""

import argparse
import asyncio
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from quintet.v1 import classification_pb2, model_pb2

from tests.bench.stand import resident_mib
from tests.campaigns.fuzz.http2 import Connection, Ended, message, request_headers
from tests.conftest import ROOT
from tests.tenants import add_tenant

CLASSIFY = "/quintet.v1.ClassificationService/Classify"
LIST_MODELS = "/quintet.v1.ModelService/ListModels"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
MIB = 1 << 20
SECONDS = 10.0  # that an attack is held
Headers = list[tuple[bytes, bytes]]


@dataclass
class Server:
    """A server under attack. `key` are the headers with a valid API key, or none."""

    process: "subprocess.Popen[str]"
    port: int
    key: Headers

    async def connections(self, number: int, **settings: int) -> list[Connection]:
        loop = asyncio.get_running_loop()
        made = [loop.create_connection(lambda: Connection(**settings), "127.0.0.1", self.port) for _ in range(number)]
        return [connection for _, connection in await asyncio.gather(*made)]

    async def calls(
        self,
        path: str,
        body: bytes,
        number: int,
        *,
        connections: int = 10,
        ends: bool = True,
        extra: tuple[tuple[bytes, bytes], ...] = (),
    ) -> Counter[str]:
        """Send many calls, and hold those that do not end. Returns how they ended."""
        opened = await self.connections(connections)
        headers = request_headers(path, [*self.key, *extra])
        tasks = [asyncio.create_task(opened[at % connections].call(headers, body, ends=ends)) for at in range(number)]
        return await held(tasks, opened)


async def held(tasks: list["asyncio.Task[Ended]"], opened: list[Connection]) -> Counter[str]:
    await asyncio.wait(tasks, timeout=SECONDS)
    names = [_name(task.result()) if task.done() else "held" for task in tasks]
    for task in tasks:
        task.cancel()
    for connection in opened:
        connection.close()
    return Counter(names)


def _name(ended: Ended) -> str:
    if ended.status is None:
        return "closed" if ended.reset is None else "reset"
    return next(code.name for code in grpc.StatusCode if code.value[0] == ended.status)


async def lacking_a_byte(server: Server) -> Counter[str]:
    return await server.calls(CLASSIFY, message(bytes(int(3.9 * MIB)))[:-1], 200, ends=False)


async def large_lacking_a_byte(server: Server) -> Counter[str]:
    return await server.calls(CLASSIFY, message(bytes(int(7.9 * MIB)))[:-1], 200, ends=False)


async def health_lacking_a_byte(server: Server) -> Counter[str]:
    return await server.calls(CHECK, message(bytes(int(3.9 * MIB)))[:-1], 200, ends=False)


async def bombs(server: Server) -> Counter[str]:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = packer.compress(bytes(int(7.9 * MIB))) + packer.flush()
    body = b"\1" + len(packed).to_bytes(4, "big") + packed
    return await server.calls(CLASSIFY, body, 300, extra=((b"grpc-encoding", b"gzip"),))


async def never_sending(server: Server) -> Counter[str]:
    return await server.calls(CLASSIFY, b"", 2_000, ends=False)


async def watches(server: Server) -> Counter[str]:
    return await server.calls(WATCH, message(b""), 10_000, connections=20)


async def not_reading(server: Server) -> Counter[str]:
    """Answers that cannot be sent; the default deadline is 5 s."""
    opened = await server.connections(10, window=1)
    headers = request_headers(LIST_MODELS, server.key)
    body = message(model_pb2.ListModelsRequest().SerializeToString())
    return await held([asyncio.create_task(opened[at % 10].call(headers, body)) for at in range(500)], opened)


async def silent(server: Server) -> Counter[str]:
    """Connections without a byte."""
    found: Counter[str] = Counter()

    async def connect() -> None:
        with suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            async with asyncio.timeout(SECONDS + 5):
                while await reader.read(1 << 16):
                    pass
                found["closed"] += 1
            writer.close()

    await asyncio.gather(*(connect() for _ in range(2_000)))
    found["held"] = 2_000 - found["closed"]
    return found


async def flood(server: Server) -> Counter[str]:
    """20,000 small calls."""
    request = message(classification_pb2.ClassifyRequest(texts=["a"]).SerializeToString())
    found: Counter[str] = Counter()
    for _ in range(20):
        found += await server.calls(CLASSIFY, request, 1_000)
    return found


ATTACKS: dict[str, Callable[[Server], Awaitable[Counter[str]]]] = {
    "200 requests of 3.9 MiB that lack a byte": lacking_a_byte,
    "200 requests of 7.9 MiB that lack a byte": large_lacking_a_byte,
    "200 health checks of 3.9 MiB that lack a byte": health_lacking_a_byte,
    "300 gzip bombs of 7.9 MiB": bombs,
    "2,000 calls that never send": never_sending,
    "10,000 open Health.Watch": watches,
    "500 calls that do not read": not_reading,
    "2,000 silent connections": silent,
    "20,000 small calls": flood,
}


@contextmanager
def served(root: Path, *, with_key: bool) -> Iterator[Server]:
    """A new server of a checkout."""
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
        key = add_tenant(Path(folder, "tenants.toml"), "acme", 'roles = ["call"]')
        paths = [str(root), str(root / "protos"), str(root / "clients" / "python")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QUINTET_")}
        environment |= {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "QUINTET_DATA": folder,
            "QUINTET_PORT": "0",
            "QUINTET_LLM": "off",
            "QUINTET_TENANTS": f"{folder}/tenants.toml",
            "QUINTET_DEFAULT_DEADLINE_SECONDS": "5",
            "QUINTET_SHUTDOWN_PAUSE_SECONDS": "0",
        }
        command = [sys.executable, "-m", "server"]
        with (
            Path(folder, "log.txt").open("w") as log,
            subprocess.Popen(
                command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            ) as process,
        ):
            assert process.stdout
            port = int(process.stdout.readline().partition(";")[0].rpartition(":")[2])
            yield Server(process, port, [(b"authorization", f"Bearer {key}".encode())] if with_key else [])
            process.kill()


def attack(server: Server, run: Callable[[Server], Awaitable[Counter[str]]]) -> list[str]:
    """The row of one attack."""
    command = [sys.executable, "-m", "tests.campaigns.attacks", "--probe", str(server.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdout
        probe.stdout.readline()
        memory = [resident_mib(server.process.pid)]
        ended = asyncio.run(_watched(server, run, memory))
        percentiles, _ = probe.communicate("", 30)
    time.sleep(5)
    after = resident_mib(server.process.pid)
    how = ", ".join(f"{number} {name}" for name, number in ended.most_common())
    return [f"{memory[0]:.0f}", f"{max(memory):.0f}", f"{after:.0f}", *percentiles.split(), how]


async def _watched(
    server: Server, run: Callable[[Server], Awaitable[Counter[str]]], memory: list[float]
) -> Counter[str]:
    async def watch() -> None:
        while True:
            memory.append(resident_mib(server.process.pid))
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        return await run(server)
    finally:
        watching.cancel()


def probe(port: int) -> None:
    """Check health every 10 ms until the input ends; print p50 and p99 in milliseconds."""
    times = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
        print("ready", flush=True)
        while not select.select([0], [], [], 0)[0]:  # its end counts as readable
            begun = time.monotonic()
            with suppress(grpc.RpcError):
                stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
            times.append((time.monotonic() - begun) * 1000)
            time.sleep(0.01)
    cut = statistics.quantiles(times, n=100)
    print(f"{statistics.median(times):.1f} {cut[98]:.0f}")


# What is open: path, body, whether the request ends.
OPEN = {
    "a reflection stream": (REFLECTION, b"", False),
    "a call that never sends": (CLASSIFY, b"", False),
    "a health check that never sends": (CHECK, b"", False),
    "a call that does not read, after its deadline": (LIST_MODELS, message(b""), True),
    "a watch that does not read": (WATCH, message(b""), True),
}


async def stop_with(server: Server, kind: str) -> float:
    """Seconds from SIGTERM to the end of a server."""
    path, body, ends = OPEN[kind]
    connections = await server.connections(1, window=1)
    task = asyncio.create_task(connections[0].call(request_headers(path, server.key), body, ends=ends))
    await asyncio.sleep(7 if "deadline" in kind else 0.5)
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(server.process.wait, 60)
    task.cancel()
    return time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.attacks", description="Attack servers.")
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout whose server is attacked")
    parser.add_argument("--only", default="", help="attacks whose names contain this")
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.probe:
        probe(given.probe)
    else:
        _print_all(given)


def _print_all(given: argparse.Namespace) -> None:
    print("| attack | key | MiB before | most | after | health p50 ms | p99 ms | calls |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, run in ATTACKS.items():
        for with_key in (False, True):
            if given.only in name and not (with_key and ("health" in name.lower() or "silent" in name)):
                with served(given.root, with_key=with_key) as server:
                    row = attack(server, run)
                print(f"| {name} | {'yes' if with_key else 'no'} | {' | '.join(row)} |", flush=True)
    print("\n| open while the server stops | seconds until it has stopped |\n| --- | --- |")
    for kind in OPEN:
        if given.only in kind:
            with served(given.root, with_key=True) as server:
                print(f"| {kind} | {asyncio.run(stop_with(server, kind)):.1f} |", flush=True)


if __name__ == "__main__":
    main()
