"""Servers that do nothing: python -m tests.bench.noop aio|uvloop|threads bare|wrapped MILLISECONDS. Prints the port.

PredictPrice is answered with a constant, or after so many milliseconds on one of two threads, which hold no GIL:
what a model's run looks like from outside. `wrapped` has everything that the real server has around its handlers.
"""

import asyncio
import sys
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import uvloop
from quintet.v1 import pricing_pb2, pricing_pb2_grpc

from server.rpc.admission import Admission
from server.rpc.pipeline import Registrar

RESPONSE = pricing_pb2.PredictPriceResponse(estimates=[pricing_pb2.PriceEstimate(price_usd=1, low_usd=1, high_usd=1)])
OPTIONS = (("grpc.so_reuseport", 0),)


class Waiting(pricing_pb2_grpc.PricingServiceServicer):
    """On an event loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lanes = ThreadPoolExecutor(2)

    async def PredictPrice(self, request: Any, context: Any) -> pricing_pb2.PredictPriceResponse:
        if self._seconds:
            await asyncio.wrap_future(self._lanes.submit(time.sleep, self._seconds))
        return RESPONSE


class Blocking(Waiting):
    """On gRPC's own threads."""

    def PredictPrice(self, request: Any, context: Any) -> pricing_pb2.PredictPriceResponse:  # type: ignore[override]
        if self._seconds:
            self._lanes.submit(time.sleep, self._seconds).result()
        return RESPONSE


async def serve(kind: str, seconds: float) -> None:
    """grpc.aio on the running loop."""
    server = grpc.aio.server(options=OPTIONS)
    admission = Admission(4096, 300, max_wait_seconds=60, lanes=2)
    registrar: Any = server if kind == "bare" else Registrar(server, admission, 1 << 22)
    pricing_pb2_grpc.add_PricingServiceServicer_to_server(Waiting(seconds), registrar)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


def main(stack: str, kind: str, milliseconds: str) -> None:
    """Serve until killed."""
    seconds = float(milliseconds) / 1000
    if stack == "threads":
        server = grpc.server(ThreadPoolExecutor(64), options=OPTIONS)
        pricing_pb2_grpc.add_PricingServiceServicer_to_server(Blocking(seconds), server)
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        server.start()
        server.wait_for_termination()
    else:
        work: Coroutine[Any, Any, None] = serve(kind, seconds)
        uvloop.run(work) if stack == "uvloop" else asyncio.run(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
