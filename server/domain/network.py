"""Hosts, proxies, and the causes of failed connections in words that may be logged."""

import ipaddress
import socket
import ssl
from collections.abc import Iterator, MutableMapping

_LOOPBACK = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8")


def is_loopback(host: str) -> bool:
    """Whether the host is this machine alone. Names other than localhost count as other machines."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bypass_proxies_on_loopback(environment: MutableMapping[str, str]) -> None:
    """Add loopback to no_proxy: a proxy cannot reach this machine's own ports. Libraries and children read it."""
    before = environment.get("no_proxy") or environment.get("NO_PROXY", "")
    hosts = [host for host in (part.strip() for part in before.split(",")) if host]
    if "*" not in hosts:
        hosts += [host for host in _LOOPBACK if host not in hosts]
        environment["no_proxy"] = environment["NO_PROXY"] = ",".join(hosts)


def connection_cause(error: BaseException) -> str:
    """Why a connection failed, without addresses and secrets, which libraries put into their messages."""
    return next(filter(None, map(_known_cause, _chain(error))), type(error).__name__)


def _known_cause(error: BaseException) -> str:
    match error:
        case socket.gaierror():
            return "unknown host"
        case ssl.SSLCertVerificationError():
            return f"TLS: {error.verify_message}"
        case ssl.SSLError():
            return f"TLS: {str(getattr(error, 'reason', '') or 'failed').lower().replace('_', ' ')}"
        case TimeoutError():
            return "no answer in time"
        case OSError():
            return (error.strerror or "").lower()  # such as "connection refused"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was made of, the first cause first."""
    if error is not None:
        yield from _chain(error.__cause__ or error.__context__)
        yield error
