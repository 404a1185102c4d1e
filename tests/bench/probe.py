"""Watches a server under load: python -m tests.bench.probe ADDRESS SECONDS many|single|none

Prints "ready", then JSON. Asks for health fifty times a second and calls Classify as often, with as many texts as the
load has, or not at all.
"""

import json
import sys
import time
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from quintet.v1 import classification_pb2, classification_pb2_grpc

from tests.bench.requests import CLASSIFY, CLASSIFY_MANY

_PAUSE_SECONDS = 0.02
_REQUESTS = {"many": CLASSIFY_MANY, "single": CLASSIFY, "none": None}


def is_proper(error: Any) -> bool:
    """RESOURCE_EXHAUSTED with the reason SERVER_OVERLOADED, and RetryInfo and pushback that agree."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        packed.Unpack(info) or packed.Unpack(retry)
    pushback = dict(error.trailing_metadata()).get("grpc-retry-pushback-ms", "0")
    return (
        error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        and info.reason == "SERVER_OVERLOADED"
        and retry.retry_delay.ToMilliseconds() == int(pushback) > 0
    )


def main(address: str, seconds: str, texts: str) -> None:
    """Measure and print."""
    request = _REQUESTS[texts]
    refusals: list[tuple[float, bool]] = []  # milliseconds, and whether all was there that should be
    healths, serving, calls = [], 0, []
    with grpc.insecure_channel(address) as channel, grpc.insecure_channel(address) as other:
        stub = classification_pb2_grpc.ClassificationServiceStub(channel)
        health = health_pb2_grpc.HealthStub(other)
        health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        print("ready", flush=True)

        def ask(request: classification_pb2.ClassifyRequest) -> None:
            begun = time.perf_counter()

            def ended(call: Any) -> None:
                if error := call.exception():
                    refusals.append(((time.perf_counter() - begun) * 1000, is_proper(error)))

            calls.append(stub.Classify.future(request, timeout=20))
            calls[-1].add_done_callback(ended)

        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            if request is not None:
                ask(request)
            begun = time.perf_counter()
            answer = health.Check(health_pb2.HealthCheckRequest(service="ready"), timeout=10)
            healths.append((time.perf_counter() - begun) * 1000)
            serving += answer.status == health_pb2.HealthCheckResponse.SERVING
            time.sleep(_PAUSE_SECONDS)
        for call in calls:
            call.exception()
    times = [milliseconds for milliseconds, _ in refusals]
    print(
        json.dumps(
            {
                "refusals seen": len(refusals),
                "refusal p50, ms": _quantile(times, 0.5),
                "refusal p99, ms": _quantile(times, 0.99),
                "refusals as they should be": sum(proper for _, proper in refusals) / max(1, len(refusals)),
                "health p99, ms": _quantile(healths, 0.99),
                "health SERVING": serving / len(healths),
            }
        )
    )


def _quantile(values: list[float], share: float) -> float:
    """The quantile, or NaN if there are no values."""
    return sorted(values)[int(len(values) * share)] if values else float("nan")


if __name__ == "__main__":
    main(*sys.argv[1:])
