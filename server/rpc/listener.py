"""The options of the gRPC server, and its port, with TLS if there are certificates."""

import errno
import os
import resource
import socket
import stat
from contextlib import suppress

import grpc

from server.rpc.certificates import Certificates

_WHY = {
    errno.EADDRINUSE: "the port is in use; set {setting} to another port, or to 0",
    errno.EACCES: "the port needs a privilege; set {setting} to 1024 or more",
    errno.EADDRNOTAVAIL: "this machine has no such address; set QUINTET_HOST to one that it has",
    errno.EAFNOSUPPORT: "this machine has no IPv6; set QUINTET_HOST to another address",
}
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_IDENTITY_ONLY = 1  # a bit for each compression algorithm; the first one is none
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    # Go clients ping every 10 s; the default of one ping in 5 minutes would disconnect them (too_many_pings).
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    # A client's connection stays on one server, so it is ended now and then for the load to spread.
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 10 * 60_000),
    # What clients can hold without authentication.
    ("grpc.max_connection_idle_ms", 5 * 60_000),
    ("grpc.server_handshake_timeout_ms", 10_000),  # TLS and the first HTTP/2 frames
    ("grpc.max_concurrent_streams", 1024),
    # Refused by its header: a request of a few KiB could be decompressed to the largest one again and again.
    ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
)


class CannotStart(Exception):
    """The server cannot start; the message is for the operator."""


def options(max_request_bytes: int) -> tuple[tuple[str, int], ...]:
    """Options of a server for requests of this size, and for as many connections as half of its open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        *_OPTIONS,
        # A quarter more than the limit, so that the refusal of a request that is a little too large has details.
        ("grpc.max_receive_message_length", max_request_bytes * 5 // 4),
        ("grpc.max_allowed_incoming_connections", max(files // 2, 64)),
    )


def listen(server: grpc.aio.Server, host: str, port: int, certificates: Certificates | None) -> str:
    """Open the port; returns host:port. Raises CannotStart."""
    wanted = address(host, port)
    try:
        if certificates:
            found = server.add_secure_port(wanted, certificates.credentials())
        else:
            found = server.add_insecure_port(wanted)
    except RuntimeError:  # it says no cause
        raise CannotStart(f"cannot listen on {wanted}: {why_not(host, port, 'QUINTET_PORT')}") from None
    return address(host, found)


def hang_up(port: int) -> None:
    """Close the port and its connections.

    While a gRPC server shuts down it answers late calls with a bare CANCELLED, which no client retries. Calls on a
    connection that closes are UNAVAILABLE. gRPC has no function for it, so this looks through the process's sockets.
    """
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as found:
                    is_tcp = found.type == socket.SOCK_STREAM and found.family in _FAMILIES
                    if is_tcp and found.getsockname()[1] == port:
                        found.shutdown(socket.SHUT_RDWR)


def address(host: str, port: int) -> str:
    """As clients write it: [::1]:50051."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def why_not(host: str, port: int, setting: str) -> str:
    """Why the port cannot be opened, and what to do; `setting` is that of the port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        return "no such host; set QUINTET_HOST to an address of this machine"
    for family, kind, protocol, _, each in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(each)
        except OSError as error:
            return _WHY.get(error.errno or 0, os.strerror(error.errno or 0)).format(setting=setting)
    return "gRPC cannot use this address"
