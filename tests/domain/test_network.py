"""Loopback and proxies, and the causes of failed connections."""

import socket
import ssl

import pytest

from server.domain.network import bypass_proxies_on_loopback, connection_cause, is_loopback


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "localhost,127.0.0.1,::1,127.0.0.0/8"),
        ({"NO_PROXY": "a.example, .b"}, "a.example,.b,localhost,127.0.0.1,::1,127.0.0.0/8"),
        ({"no_proxy": "localhost", "NO_PROXY": "x"}, "localhost,127.0.0.1,::1,127.0.0.0/8"),
    ],
)
def test_loopback_bypasses_proxies(before: dict[str, str], after: str) -> None:
    environment = dict(before)
    bypass_proxies_on_loopback(environment)
    assert environment == {"no_proxy": after, "NO_PROXY": after}


def test_no_proxy_at_all_stays() -> None:
    environment = {"NO_PROXY": "*"}
    bypass_proxies_on_loopback(environment)
    assert environment == {"NO_PROXY": "*"}


def test_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "localhost.example", "", "::")))


def test_causes_say_nothing_of_addresses() -> None:
    def wrapped(cause: BaseException) -> Exception:
        error = RuntimeError("redis://user:secret@host")
        error.__cause__ = cause
        return error

    assert connection_cause(wrapped(socket.gaierror(-2, "Name or service not known"))) == "unknown host"
    assert connection_cause(wrapped(ConnectionRefusedError(111, "Connection refused"))) == "connection refused"
    assert connection_cause(wrapped(TimeoutError())) == "no answer in time"
    assert connection_cause(wrapped(ssl.SSLError())) == "TLS: failed"
    assert connection_cause(wrapped(ValueError("secret"))) == "RuntimeError"
