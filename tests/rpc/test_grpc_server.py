"""Calls that end the accepting of calls in grpcio's own server."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from server.rpc.grpc_server import make_server
from tests.campaigns.fuzz.http2 import Connection, Ended, message, request_headers

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = make_server((("grpc.so_reuseport", 0),))
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", SERVING)
    opened = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield opened
    async with asyncio.timeout(10):
        await server.stop(1)


async def _call(port: int, path: bytes) -> Ended:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
    headers = [(name, path if name == b":path" else value) for name, value in request_headers("", [])]
    try:
        async with asyncio.timeout(10):
            return await connection.call(headers, message(b""))
    finally:
        connection.close()


@pytest.mark.parametrize(
    "path", [b"\xff", b"/grpc.health.v1.Health/\xc3\x28", b"/grpc.health.v1.Health/Check\xed\xa0\x80", b"/a/b", b"/"]
)
async def test_an_unknown_path_of_any_bytes_ends_only_its_own_call(port: int, path: bytes) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        assert (await _call(port, path)).status == grpc.StatusCode.UNIMPLEMENTED.value[0]
        assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == SERVING
        assert not watch.done()
        watch.cancel()
    assert (await _call(port, b"/grpc.health.v1.Health/Check")).status == grpc.StatusCode.OK.value[0]
