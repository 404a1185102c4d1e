"""What both clients share: address, TLS, API key, deadlines, retries."""

import json
import os
import re
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc

from quintet_client.calls import Stubs
from quintet_client.contract import PACKAGE
from quintet_client.errors import DeadlineExceeded

DEFAULT_ADDRESS = "127.0.0.1:50051"
POLL_SECONDS = 0.2

# Calls that are retried after UNAVAILABLE: reads, and writes that are idempotent by document id. Chat and Ask are not:
# a generation that broke off may have cost something, so the caller decides. Creating, deleting and rolling back
# collections are not either: after a lost answer, a second attempt would fail or act twice.
_RETRIED = [
    *(
        {"service": f"{PACKAGE}.{name}Service"}
        for name in ("Classification", "Embedding", "Pricing", "Analysis", "Model", "Usage")
    ),
    *(
        {"service": f"{PACKAGE}.RagService", "method": name}
        for name in (
            *("Retrieve", "GetIndex", "ListDocuments", "ListCollections", "ListGenerations"),
            *("AddDocuments", "DeleteDocuments", "Compact"),
        )
    ),
]
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": _RETRIED,
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",  # unless the server sends grpc-retry-pushback-ms
                "maxBackoff": "2s",
                "backoffMultiplier": 4,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
_MEBIBYTE = 1024 * 1024
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # gRPC does not retry a request larger than this buffer; its default of 256 KiB excludes most AddDocuments.
    ("grpc.per_rpc_retry_buffer_size", 8 * _MEBIBYTE),
    ("grpc.max_receive_message_length", 16 * _MEBIBYTE),
    # Pings, only during calls, detect a dead server; the server allows one every 5 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC's own backoff grows to two minutes; a server that is back would not be noticed for so long.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


_LOOPBACK = re.compile(
    r"(?:(?:dns|ipv4|ipv6):(?://[^/]*/)?)?(?:localhost|127(?:\.\d+){3}|\[::1\]|::1)(?::\d+)?", re.IGNORECASE
)


def channel_options(address: str) -> tuple[tuple[str, Any], ...]:
    """GRPC's options of a channel. A proxy of the environment could not reach this machine's loopback."""
    if all(_LOOPBACK.fullmatch(each) for each in address.split(",")):
        return (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))
    return CHANNEL_OPTIONS


class CallOptions(NamedTuple):
    """What is sent with one call; `timeout` is in seconds."""

    timeout: float
    metadata: tuple[tuple[str, str], ...]
    request_id: str


@dataclass(frozen=True)
class ApiKey:
    """The API key as metadata of a call. No repr shows it."""

    metadata: tuple[tuple[str, str], ...] = field(repr=False)


class Connection:
    """A channel to the server. Parameters that are not given come from the environment."""

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        tls: bool = False,
        root_certificates: bytes | None = None,
        client_certificate: bytes | None = None,
        client_key: bytes | None = None,
        timeout: float | None = None,
    ) -> None:
        key = (api_key or os.environ.get("QUINTET_API_KEY", "")).strip()
        if not re.fullmatch(r"[!-~]*", key):  # gRPC's own error would show the key
            raise ValueError("the API key must be printable ASCII without spaces")
        if (client_certificate is None) != (client_key is None):
            raise ValueError("client_certificate and client_key must be given together")
        self._address = address or os.environ.get("QUINTET_ADDRESS") or DEFAULT_ADDRESS
        self._api_key = ApiKey((("authorization", f"Bearer {key}"),) if key else ())
        self._timeout = timeout
        credentials = (
            grpc.ssl_channel_credentials(root_certificates, client_key, client_certificate)
            if tls or root_certificates is not None or client_certificate is not None
            else None
        )
        self._channel = self._open(self._address, credentials)
        self._stubs = Stubs(self._channel)

    def _open(self, address: str, credentials: grpc.ChannelCredentials | None) -> Any:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r})"

    @property
    def address(self) -> str:
        """The server's address."""
        return self._address

    def _options(self, timeout: float | None, default: float) -> CallOptions:
        """The timeout of the call, of the client, or the default; a new request id; the API key."""
        seconds = next(each for each in (timeout, self._timeout, default) if each is not None)
        request_id = uuid.uuid4().hex
        return CallOptions(seconds, (("x-request-id", request_id), *self._api_key.metadata), request_id)


def not_ready(service: str, timeout: float, state: str) -> DeadlineExceeded:
    """The error of `wait_ready` when its time is over."""
    text = f"{service or 'the server'} is not serving after {timeout:g} s: {state}"
    return DeadlineExceeded(text, code=grpc.StatusCode.DEADLINE_EXCEEDED)
