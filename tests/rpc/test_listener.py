"""The port: addresses of both families, and the causes for which it cannot be opened."""

import re
import socket

import grpc
import pytest

from server.rpc.listener import CannotStart, listen


async def opened(host: str, port: int = 0) -> str:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    try:
        return listen(server, host, port, None)
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", r"127\.0\.0\.1:\d+"),
        ("::1", r"\[::1\]:\d+"),
        ("::", r"\[::\]:\d+"),
        ("localhost", r"localhost:\d+"),
    ],
)
async def test_hosts_of_both_families(host: str, address: str) -> None:
    assert re.fullmatch(address, await opened(host))


@pytest.mark.parametrize(
    ("host", "cause"),
    [
        ("192.0.2.1", "cannot listen on 192.0.2.1:0: this machine has no such address; set QUINTET_HOST"),
        ("2001:db8::1", r"cannot listen on \[2001:db8::1\]:0: this machine has no such address; set QUINTET_HOST"),
        ("no.such.host.invalid", "no such host; set QUINTET_HOST"),
        ("http://127.0.0.1", "no such host; set QUINTET_HOST"),
    ],
)
async def test_the_cause_is_said(host: str, cause: str) -> None:
    with pytest.raises(CannotStart, match=cause):
        await opened(host)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
async def test_a_used_port(host: str, family: socket.AddressFamily) -> None:
    with socket.socket(family) as other:
        other.bind((host, 0))
        other.listen()
        with pytest.raises(CannotStart, match="the port is in use; set QUINTET_PORT"):
            await opened(host, other.getsockname()[1])
