"""Every method of both clients, described once: the RPC, the request made of plain Python, the deadline.

`client.py` sends what these functions describe, `aio.py` awaits it. A new method is one function here (`tasks.py`,
`documents.py`, `administration.py`) and one line in each client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2_grpc
from quintet.v1 import (
    analysis_pb2_grpc,
    chat_pb2_grpc,
    classification_pb2_grpc,
    embedding_pb2_grpc,
    model_pb2_grpc,
    pricing_pb2_grpc,
    rag_pb2_grpc,
    usage_pb2_grpc,
)

# Default deadlines in seconds.
READ = 10.0
GENERATE = 120.0
LOAD = 120.0  # the server reads, checks and loads a model before it answers
WRITE = 300.0  # the server embeds every passage before it answers
OPEN = 24 * 3600.0  # a stream that is meant to stay open, or work on a collection of any size

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)


class Stubs:
    """The stubs of all services on one channel."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None:
        channel = cast(grpc.Channel, channel)  # the generated classes take both kinds; the types name one
        self.classification = classification_pb2_grpc.ClassificationServiceStub(channel)
        self.pricing = pricing_pb2_grpc.PricingServiceStub(channel)
        self.chat = chat_pb2_grpc.ChatServiceStub(channel)
        self.rag = rag_pb2_grpc.RagServiceStub(channel)
        self.analysis = analysis_pb2_grpc.AnalysisServiceStub(channel)
        self.embedding = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        self.models = model_pb2_grpc.ModelServiceStub(channel)
        self.usage = usage_pb2_grpc.UsageServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)


class _Description(Generic[R]):
    """One call. `timeout` is the caller's, in seconds; `default` counts without one."""

    def __init__(
        self,
        method: grpc.UnaryUnaryMultiCallable[Q, R] | grpc.UnaryStreamMultiCallable[Q, R],
        request: Q,
        timeout: float | None,
        default: float = READ,
    ) -> None:
        self.method: Callable[..., Any] = method
        self.request: Message = request
        self.timeout = timeout
        self.default = default


class Call(_Description[R]):
    """A call that returns one R."""


class StreamCall(_Description[R]):
    """A call that returns a stream of R."""
