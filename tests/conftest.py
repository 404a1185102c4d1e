"""What the tests share: the published artefacts, and a real server in a process of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.redis_server import RedisServer

pytest_plugins = ["tests.small_artefacts"]  # its fixtures
ROOT = Path(__file__).parents[1]
START_SECONDS = 60.0
# Whoever starts the tests in the background of a shell has Ctrl-C ignored, which the processes under test inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of published artefacts. `make test` fills it before the tests run."""
    folder = Path(os.environ.get("QUINTET_DATA", ROOT / "data")) / "models"
    if not (folder / "smollm2-135m-instruct" / "current").is_file():
        pytest.fail(f"{folder} lacks what the tests need: run 'make test'", pytrace=False)
    return folder


@dataclass
class ServerProcess:
    """A server that was started as a person would, and how to reach it."""

    process: subprocess.Popen[str]
    address: str
    log: Path

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, wait, and return the exit status."""
        self.process.terminate()
        return self.process.wait(seconds)


def start_server(data: Path, log: Path, **settings: str) -> ServerProcess:
    """Start `python -m server` on a free port; return when it listens. Its output goes to `log`."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("QUINTET_")},
        "QUINTET_DATA": str(data),
        "QUINTET_PORT": "0",
        "QUINTET_LLM": "small",
        "QUINTET_SHUTDOWN_PAUSE_SECONDS": "0",
        "PYTHONUNBUFFERED": "1",
        **{f"QUINTET_{name.upper()}": value for name, value in settings.items()},
    }
    with log.open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "server"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.match(r"Quintet listens on (\S+);", line)
    if not found:
        process.kill()
        pytest.fail(f"the server did not start: {line}{log.read_text()[-2000:]}", pytrace=False)
    return ServerProcess(process, found.group(1), log)


def wait_ready(address: str, service: str = "ready", seconds: float = START_SECONDS) -> None:
    """Wait until a service is SERVING, as a load balancer would: by Health.Watch."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel, contextlib.suppress(grpc.RpcError):  # the deadline
        stub = health_pb2_grpc.HealthStub(channel)
        for answer in stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=seconds):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
    pytest.fail(f"{service or 'the server'} is not SERVING", pytrace=False)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """An empty Redis."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def data(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the published artefacts and a copy of the demo collection, so that tests may write to it."""
    import shutil

    folder = tmp_path_factory.mktemp("data")
    (folder / "models").symlink_to(models.resolve())
    shutil.copytree(models.parent / "index" / "wikipedia", folder / "index" / "wikipedia")
    return folder


@pytest.fixture(scope="session")
def server(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A warm server with the small language model."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    running = start_server(data, log, log_level="DEBUG", metrics_port="0")
    try:
        wait_ready(running.address)
        yield running
    finally:
        status = running.stop()
    assert status == 0


@pytest.fixture(scope="session")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    """A channel to the warm server."""
    with grpc.insecure_channel(server.address) as open_channel:
        yield open_channel
