"""The processes that are compared, started when they are first needed and ended together."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.conftest import ROOT, start_server, wait_ready

START_SECONDS = 120.0
_FIRST = -15  # a priority; lower numbers go first
# Caching would answer the one request that is repeated here without computing anything.
CACHE_OFF = {"result_cache": "0"}


@dataclass(frozen=True)
class Quintet:
    """A server of ours."""

    address: str
    metrics: str
    pid: int


class Stand:
    """Use it as a context manager. `data` is a folder with models/ and index/."""

    def __init__(self, data: Path, scratch: Path) -> None:
        self.data = data.resolve()
        self.models = self.data / "models"
        self._scratch = scratch
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Stand":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def quintet(self) -> Quintet:
        """Everything but an embedded language model: chat goes to `upstream`. Caches are off."""
        return self.start_quintet(llm_base_url=f"http://{self.upstream}/v1", llm_model="bench", **CACHE_OFF)

    def start_quintet(self, **settings: str) -> Quintet:
        """A server of its own, ready."""
        log = self._scratch / f"quintet-{time.monotonic_ns()}.log"
        running = start_server(self.data, log, metrics_port="0", **settings)
        self._stack.callback(running.stop)
        wait_ready(running.address)
        found = re.search(r"metrics on (\S+)", log.read_text())
        assert found
        return Quintet(running.address, found.group(1), running.process.pid)

    @cached_property
    def upstream(self) -> str:
        """The address of a provider that costs nothing."""
        return self._listening("tests.bench.upstream")

    @cached_property
    def noop_wrapped(self) -> str:
        """The address of a server that does nothing, on the stack of the real one."""
        return self.noop("uvloop", "wrapped")[0]

    def noop(self, stack: str, kind: str, milliseconds: float = 0) -> tuple[str, int]:
        """Address and process id of a server that does nothing; a new one each time."""
        process = self._start("tests.bench.noop", stack, kind, str(milliseconds))
        return self._address(process), process.pid

    @cached_property
    def pipeline(self) -> str:
        """The address of FastAPI + transformers.pipeline with the weights of the sentiment model."""
        return self._http("tests.bench.baselines.pipeline", str(self.artefact("sentiment") / "torch"))

    @cached_property
    def joblib(self) -> str:
        """The address of FastAPI + joblib with the price model."""
        file = self.artefact("house-prices") / "model.joblib"
        return self._http("tests.bench.baselines.joblib_price", str(file), OMP_NUM_THREADS="1")

    def probe(self, address: str, seconds: float, texts: str) -> "subprocess.Popen[str]":
        """A probe that is ready to measure: starting it would take a part of what is measured.

        It goes before everything else, where that is allowed: a caller on another machine has cores of its own.
        """
        process = self._start("tests.bench.probe", address, str(seconds), texts)
        assert process.stdout is not None
        process.stdout.readline()
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), _FIRST)
            Path(f"/proc/{process.pid}/autogroup").write_text(str(_FIRST))
        return process

    @contextlib.contextmanager
    def litserve(self, kind: str) -> Iterator[str]:
        """The address of LitServe with the "text" or the "price" model. It takes a core even if nobody asks, so it
        is there for a while only.
        """
        name, part, threads = {
            "text": ("sentiment", "torch", {}),
            "price": ("house-prices", "model.joblib", {"OMP_NUM_THREADS": "1"}),
        }[kind]
        port = _free_port()
        process = self._start("tests.bench.baselines.lit", kind, str(self.artefact(name) / part), str(port), **threads)
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"127.0.0.1:{port}"
        finally:
            _end(process)

    def artefact(self, name: str) -> Path:
        """The folder of the version that is served."""
        return self.models / name / (self.models / name / "current").read_text().strip()

    def output(self, module: str, *arguments: str) -> str:
        """What a module prints until it ends."""
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout

    def _start(self, module: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "ignore", **environment},  # scikit-learn's, one a request
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._stack.callback(_end, process)
        return process

    def _listening(self, module: str, *arguments: str) -> str:
        return self._address(self._start(module, *arguments))

    @staticmethod
    def _address(process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        return f"127.0.0.1:{int(process.stdout.readline())}"

    def _http(self, module: str, *arguments: str, **environment: str) -> str:
        port = _free_port()
        process = self._start(module, *arguments, str(port), **environment)
        give_up = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                return f"127.0.0.1:{port}"
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"{module} did not start")
            time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(url: str, process: "subprocess.Popen[str]") -> None:
    """Until it answers with 200."""
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=10):
            return
        time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer")


def _end(process: "subprocess.Popen[str]") -> None:
    """With the processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its children; what they share counts for each."""
    pids = [str(pid)]
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            if status.read_text().rpartition(")")[2].split()[1] == str(pid):
                pids.append(status.parent.name)
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
