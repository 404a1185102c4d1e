"""Load from outside: h2load, written in C, speaks HTTP/2 and can post a gRPC message; and what a scrape says of it."""

import shutil
import statistics
import struct
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from prometheus_client.parser import text_string_to_metric_families

DEADLINE_SECONDS = 20
_WARM_UP_SECONDS = 1


@dataclass(frozen=True)
class Load:
    """What a run of h2load saw: answers of any status a second, and their times in milliseconds."""

    per_second: float
    p50_ms: float
    p99_ms: float


def require_h2load() -> None:
    """Raises SystemExit with a way out."""
    if not shutil.which("h2load"):
        raise SystemExit("error: h2load is not installed; on Debian: apt-get install nghttp2-client")


def grpc(address: str, method: str, request: Message, **options: Any) -> Load:
    """Call a method of quintet.v1, such as "PricingService/PredictPrice"; options are those of `run`."""
    payload = request.SerializeToString()
    framed = b"\0" + struct.pack(">I", len(payload)) + payload
    headers = ["content-type: application/grpc", "te: trailers", f"grpc-timeout: {DEADLINE_SECONDS}S"]
    return run(f"http://{address}/quintet.v1.{method}", framed, headers, **options)


def http(address: str, body: bytes, **options: Any) -> Load:
    """POST JSON over HTTP/1.1."""
    return run(f"http://{address}/", body, ["content-type: application/json"], h1=True, **options)


def run(
    url: str,
    body: bytes,
    headers: list[str],
    *,
    h1: bool = False,
    seconds: float,
    clients: float = 1,
    streams: float = 1,
    rate: float = 0.0,
) -> Load:
    """`clients` connections with `streams` requests at once each; `rate` a second in all, or as fast as answered."""
    with tempfile.TemporaryDirectory() as folder:
        data, log = Path(folder, "body"), Path(folder, "log")
        data.write_bytes(body)
        command = ["h2load", "-t", "1", "-D", f"{seconds * 1000:.0f}ms", "--warm-up-time", f"{_WARM_UP_SECONDS}"]
        command += ["-c", f"{clients:g}", "-m", f"{streams:g}", "-d", str(data), "--log-file", str(log)]
        command += [*(["--h1"] if h1 else []), *(part for header in headers for part in ("-H", header)), url]
        if rate:
            command += ["--rps", f"{rate / clients:.3f}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=seconds + 60)
        times = sorted(int(line.split("\t")[2]) / 1000 for line in log.read_text().splitlines())
    if len(times) < 2:
        raise RuntimeError(f"{url} answered {len(times)} requests")
    return Load(len(times) / seconds, statistics.median(times), times[int(len(times) * 0.99)])


def scraped(url: str, name: str, **labels: str) -> float:
    """The sum of the samples of one metric with these labels, as the server publishes them now."""
    with urllib.request.urlopen(url, timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
