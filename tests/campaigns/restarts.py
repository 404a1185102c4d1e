"""Rolling restarts behind Envoy: python -m tests.campaigns.restarts [--rounds 10] [--pause 7].

Three servers with small models; Envoy checks their health every 5 s and does not retry. Clients classify, list models
and stream chats while one server after the other gets SIGTERM and is started again. Exits with 0 if no call failed.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from quintet.v1 import chat_pb2, chat_pb2_grpc, classification_pb2, classification_pb2_grpc, model_pb2, model_pb2_grpc

from tests.conftest import ServerProcess, start_server, wait_ready
from tests.e2e.tasks import conversation
from tests.fakes import OpenAIServer, Reply
from tests.tiny_models import TEXTS, add

SERVICE = "quintet.v1.ChatService"  # it serves without published artefacts
CALLERS = 4  # of each kind
HEALTH_SECONDS = 5


@dataclass
class Round:
    """What a round saw: calls by kind and status, and how long each stop took."""

    calls: dict[str, Counter[str]] = field(default_factory=dict)
    stops: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(number for calls in self.calls.values() for status, number in calls.items() if status != "OK")


class Fleet:
    """Three servers on fixed ports, one folder, one provider."""

    def __init__(self, folder: Path, provider: str, pause: float) -> None:
        self._folder, self._provider, self._pause = folder, provider, pause
        self.ports = [_free_port() for _ in range(3)]
        self._servers: dict[int, ServerProcess] = {}

    async def start(self, port: int) -> None:
        """Start the server of a port, and wait until it serves."""

        def run() -> ServerProcess:
            server = start_server(
                self._folder,
                self._folder / f"{port}.log",
                port=str(port),
                llm_base_url=self._provider,
                llm_api_key="test-key",
                llm_model="slow",
                models=json.dumps({"tiny": {}}),
                shutdown_pause_seconds=str(self._pause),
            )
            wait_ready(server.address, SERVICE)
            return server

        self._servers[port] = await asyncio.to_thread(run)

    async def stop(self, port: int) -> float:
        """Stop the server of a port; returns the seconds that it took. Raises AssertionError if it ended badly."""
        begun = time.monotonic()
        status = await asyncio.to_thread(self._servers.pop(port).stop, 60)
        assert status == 0, f"the server ended with status {status}"
        return time.monotonic() - begun

    def kill(self) -> None:
        for server in self._servers.values():
            server.process.kill()


class Envoy:
    """One proxy in front of all servers."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self._admin = _free_port()
        port = _free_port()
        self.address = f"127.0.0.1:{port}"
        file = folder / "envoy.json"
        file.write_text(json.dumps(_configuration(port, self._admin, ports)))
        command = ["envoy", "-c", str(file), "--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]
        with (folder / "envoy.log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    async def until_healthy(self, number: int) -> None:
        """Wait until it sends calls to so many servers."""
        async with asyncio.timeout(60):
            while await asyncio.to_thread(self._healthy) != number:  # noqa: ASYNC110  # Envoy has no event for it
                await asyncio.sleep(0.2)

    def _healthy(self) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._admin}/clusters?format=json", timeout=5) as response:
                (cluster,) = json.load(response)["cluster_statuses"]
        except OSError:  # it starts
            return -1
        states = [host["health_status"] for host in cluster["host_statuses"]]
        return sum(state == {"eds_health_status": "HEALTHY"} for state in states)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _configuration(port: int, admin: int, ports: list[int]) -> dict[str, Any]:
    types = "type.googleapis.com/envoy.extensions"
    router = {"name": "router", "typed_config": {"@type": f"{types}.filters.http.router.v3.Router"}}
    manager = {
        "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "grpc",
        "codec_type": "HTTP2",
        "http_filters": [router],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "quintet", "timeout": "0s"}}],
                }
            ]
        },
    }
    http2 = {
        "@type": f"{types}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    cluster = {
        "name": "quintet",
        "type": "STATIC",
        "typed_extension_protocol_options": {f"{types[20:]}.upstreams.http.v3.HttpProtocolOptions": http2},
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_assignment": {
            "cluster_name": "quintet",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(each)}} for each in ports]}],
        },
        "health_checks": [
            {
                "timeout": "1s",
                "interval": f"{HEALTH_SECONDS}s",
                "no_traffic_interval": f"{HEALTH_SECONDS}s",
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "grpc_health_check": {"service_name": SERVICE},
            }
        ],
    }
    listener = {
        "name": "grpc",
        "address": _address(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {
        "admin": {"address": _address(admin)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Callers:
    """Calls of three kinds, one after the other in each of several callers."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        classification = classification_pb2_grpc.ClassificationServiceStub(channel)
        models = model_pb2_grpc.ModelServiceStub(channel)
        chats = chat_pb2_grpc.ChatServiceStub(channel)
        classify = classification_pb2.ClassifyRequest(texts=TEXTS, model="tiny")
        chat = chat_pb2.StreamChatRequest(messages=conversation("Tell a story."))

        async def stream() -> None:
            events = [event async for event in chats.StreamChat(chat, timeout=30)]
            assert events[-1].WhichOneof("event") == "done"

        self.kinds: dict[str, Callable[[], Awaitable[Any]]] = {
            "Classify": lambda: classification.Classify(classify, timeout=10),
            "ListModels": lambda: models.ListModels(model_pb2.ListModelsRequest(), timeout=10),
            "StreamChat": stream,
        }
        self.round = Round()

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Call while the body runs; let the last calls end."""
        self._ends = False
        tasks = [asyncio.create_task(self._call(kind)) for kind in self.kinds for _ in range(CALLERS)]
        try:
            yield
        finally:
            self._ends = True
            await asyncio.gather(*tasks)

    async def _call(self, kind: str) -> None:
        while not self._ends:
            status = "OK"
            try:
                await self.kinds[kind]()
            except grpc.aio.AioRpcError as error:
                status = f"{error.code().name} {error.details()}"
            self.round.calls.setdefault(kind, Counter())[status] += 1
            await asyncio.sleep(0.02)


async def campaign(folder: Path, rounds: int, pause: float) -> list[Round]:
    """Restart every server so many times."""
    found = []
    provider = OpenAIServer()
    provider.default = Reply(deltas=["word "] * 10, pause=0.1)
    async with provider.running():
        fleet = Fleet(folder, provider.base_url, pause)
        envoy = Envoy(folder, fleet.ports)
        try:
            await asyncio.gather(*(fleet.start(port) for port in fleet.ports))
            await envoy.until_healthy(3)
            async with grpc.aio.insecure_channel(envoy.address) as channel:
                callers = Callers(channel)
                async with callers.calling():
                    for number in range(rounds):
                        callers.round = Round()
                        for port in fleet.ports:
                            callers.round.stops.append(await fleet.stop(port))
                            await fleet.start(port)
                            await envoy.until_healthy(3)
                        found.append(callers.round)
                        _show(number, callers.round)
        finally:
            envoy.kill()
            fleet.kill()
    return found


def _show(number: int, seen: Round) -> None:
    counts = [f"{seen.calls[kind].total():,}" for kind in sorted(seen.calls)]
    print(f"| {number + 1} | {' | '.join(counts)} | {max(seen.stops):.1f} | {seen.failed} |", flush=True)
    for kind, calls in seen.calls.items():
        for status, times in calls.items():
            if status != "OK":
                print(f"  {kind}: {times} times {status}", flush=True)


def main() -> int:
    """Return 0 if no call failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.restarts", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pause", type=float, default=7.0, help="QUINTET_SHUTDOWN_PAUSE_SECONDS")
    given = parser.parse_args()
    print("| round | Classify | ListModels | StreamChat | longest stop in s | failed |\n" + "| --- " * 6 + "|")
    with tempfile.TemporaryDirectory(prefix="restarts-") as name:
        (Path(name) / "models").mkdir()
        add(Path(name) / "models", "1")
        found = asyncio.run(campaign(Path(name), given.rounds, given.pause))
    failed = sum(each.failed for each in found)
    total = sum(calls.total() for each in found for calls in each.calls.values())
    print(f"\n{failed} of {total:,} calls failed in {3 * len(found)} restarts")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
