"""How a server is spoken to: address, encryption, key, deadlines, retries. Shared by both clients."""

import json
import os
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from quintet.v1 import chat_pb2, model_pb2, rag_pb2, usage_pb2

from quintet_client.contract import PACKAGE
from quintet_client.errors import DeadlineExceeded

DEFAULT_ADDRESS = "127.0.0.1:50051"
POLL_SECONDS = 0.2

# Seconds that a call may take, by the type of its request.
_DEFAULT_SECONDS = 10.0
_SECONDS: dict[type[Message], float] = {
    chat_pb2.ChatRequest: 120.0,
    chat_pb2.StreamChatRequest: 120.0,
    rag_pb2.AskRequest: 120.0,
    rag_pb2.StreamAskRequest: 120.0,
    rag_pb2.AddDocumentsRequest: 300.0,  # every passage is embedded before the server answers
    rag_pb2.DeleteDocumentsRequest: 300.0,
    # A model is read, checked and loaded before the server answers.
    model_pb2.LoadModelRequest: 120.0,
    model_pb2.ReloadModelRequest: 120.0,
    model_pb2.SetAliasRequest: 120.0,
    model_pb2.WatchModelsRequest: 24 * 3600.0,  # it is meant to stay open
    usage_pb2.WatchUsageRequest: 24 * 3600.0,
    rag_pb2.DeleteCollectionRequest: 300.0,
    rag_pb2.RollbackRequest: 300.0,
    rag_pb2.CompactRequest: 300.0,
    rag_pb2.ImportDocumentsRequest: 86_400.0,  # as long as it takes to embed what may be a library
    rag_pb2.ReindexRequest: 86_400.0,
}

# What is tried again after UNAVAILABLE: everything that reads, and the writes, which are idempotent by document id.
# Chat and Ask are not: a generation that broke off may have been paid for, so the caller decides. Nor is what makes,
# removes or rolls back collections: a second attempt after a lost answer would fail, or do it again.
_RETRIED = [
    *({"service": f"{PACKAGE}.{name}Service"} for name in ("Classification", "Pricing", "Analysis", "Model", "Usage")),
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
                "initialBackoff": "0.1s",  # unless the server says how long with grpc-retry-pushback-ms
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
    # A request larger than this buffer is never tried again; gRPC's own 256 KiB would leave out most AddDocuments.
    ("grpc.per_rpc_retry_buffer_size", 8 * _MEBIBYTE),
    ("grpc.max_receive_message_length", 16 * _MEBIBYTE),
    # During calls alone, so that a dead server is noticed; the server allows a ping every 5 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC's own backoff grows to two minutes, in which a server that is back would not be seen.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class CallOptions(NamedTuple):
    """What goes with one call."""

    timeout: float
    metadata: tuple[tuple[str, str], ...]
    request_id: str


@dataclass(frozen=True)
class Connection:
    """Where the server is and how to speak to it. The key is in no repr."""

    address: str
    api_key: str | None = field(repr=False)
    tls: bool
    root_certificates: bytes | None = field(repr=False)
    client_certificate: bytes | None = field(repr=False)
    client_key: bytes | None = field(repr=False)
    timeout: float | None

    @classmethod
    def create(
        cls,
        address: str | None,
        *,
        api_key: str | None,
        tls: bool,
        root_certificates: bytes | None,
        client_certificate: bytes | None,
        client_key: bytes | None,
        timeout: float | None,
    ) -> "Connection":
        """With what is not given taken from the environment. Raises ValueError for keys that cannot be used."""
        key = (api_key or os.environ.get("QUINTET_API_KEY", "")).strip() or None
        if key and not re.fullmatch(r"[!-~]+", key):  # gRPC's own error would show it
            raise ValueError("the API key must be printable ASCII without spaces")
        if (client_certificate is None) != (client_key is None):
            raise ValueError("a client certificate and its key need each other")
        return cls(
            address=address or os.environ.get("QUINTET_ADDRESS") or DEFAULT_ADDRESS,
            api_key=key,
            tls=tls or root_certificates is not None or client_certificate is not None,
            root_certificates=root_certificates,
            client_certificate=client_certificate,
            client_key=client_key,
            timeout=timeout,
        )

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For TLS; None without."""
        if not self.tls:
            return None
        return grpc.ssl_channel_credentials(self.root_certificates, self.client_key, self.client_certificate)

    def options(self, kind: type[Message], timeout: float | None) -> CallOptions:
        """For a request of this kind: the timeout of the call, the client or the method; the key; a new request id."""
        request_id = uuid.uuid4().hex
        metadata = [("x-request-id", request_id)]
        if self.api_key:
            metadata.append(("authorization", f"Bearer {self.api_key}"))
        seconds = next(
            (each for each in (timeout, self.timeout) if each is not None),
            _SECONDS.get(kind, _DEFAULT_SECONDS),
        )
        return CallOptions(seconds, tuple(metadata), request_id)


class ReadyWait:
    """How long `wait_ready` waits for `service`."""

    def __init__(self, service: str, timeout: float) -> None:
        self._service = service
        self._timeout = timeout
        self._end = time.monotonic() + timeout

    @property
    def left(self) -> float:
        """Seconds for the next check, a little even if there are none."""
        return max(0.1, self._end - time.monotonic())

    def is_over(self, state: str) -> bool:
        """True if `state` is SERVING. Raises DeadlineExceeded, with the state, if the time is over."""
        if state == "SERVING":
            return True
        if time.monotonic() + POLL_SECONDS < self._end:
            return False
        name = self._service or "the server"
        text = f"{name} is not serving after {self._timeout:g} s: {state}"
        raise DeadlineExceeded(text, code=grpc.StatusCode.DEADLINE_EXCEEDED)
