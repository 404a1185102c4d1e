"""The client for threads and scripts. `aio.py` has the same methods as coroutines."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from quintet.v1 import rag_pb2

from quintet_client import inputs
from quintet_client.calls import OPEN, Call, StreamCall, Stubs, administration, documents, tasks
from quintet_client.connection import POLL_SECONDS, Connection, channel_options, not_ready
from quintet_client.errors import DeadlineExceeded, QuintetError, Unreachable, translate
from quintet_client.inputs import Document

P = ParamSpec("P")
R = TypeVar("R", bound=Message)


def unary(describe: Callable[Concatenate[Stubs, P], Call[R]]) -> Callable[Concatenate[Any, P], R]:
    """A method that makes the described call."""

    @wraps(describe)
    def method(self: QuintetClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        call = describe(self._stubs, *args, **kwargs)
        options = self._options(call.timeout, call.default)
        try:
            response: R = call.method(call.request, timeout=options.timeout, metadata=options.metadata)
        except grpc.RpcError as error:
            raise translate(error, options.request_id) from error
        return response

    return method


def stream(
    describe: Callable[Concatenate[Stubs, P], StreamCall[R]],
) -> Callable[Concatenate[Any, P], Generator[R, None, None]]:
    """A method that iterates over the responses of the described call."""

    def responses(self: QuintetClient, call: StreamCall[R]) -> Generator[R, None, None]:
        options = self._options(call.timeout, call.default)
        running = call.method(call.request, timeout=options.timeout, metadata=options.metadata)
        try:
            yield from running
        except grpc.RpcError as error:
            raise translate(error, options.request_id) from error
        finally:
            running.cancel()

    @wraps(describe)
    def method(self: QuintetClient, /, *args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
        return responses(self, describe(self._stubs, *args, **kwargs))

    return method


class QuintetClient(Connection):
    """A connection to Quintet. Create one and share it between threads.

    Methods return the messages of `quintet.v1` and raise `QuintetError`s. Every call has a deadline: `timeout` in
    seconds for the call, else the client's `timeout`, else 10 s (120 s for chat, ask and loading models, 300 s for
    changes to documents and collections, a day for imports, reindexing and watching). While the server is
    UNAVAILABLE, reads and changes to documents by id are tried up to 4 times. Chat and ask are tried once, because a
    generation that broke off may have cost something; so are changes to collections, imports and reindexing.

    `address` is "host:port", by default QUINTET_ADDRESS or 127.0.0.1:50051. `api_key`, by default QUINTET_API_KEY,
    is sent as a bearer token; without TLS it crosses the network in the clear. TLS is used with `tls` (the roots
    that come with gRPC) or `root_certificates` (PEM). `client_certificate` (the chain) and `client_key` (PEM, both)
    authenticate the client to the server.
    """

    def _open(self, address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        if credentials:
            return grpc.secure_channel(address, credentials, channel_options(address))
        return grpc.insecure_channel(address, channel_options(address))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        self._channel.close()

    classify = unary(tasks.classify)
    embed = unary(tasks.embed)
    predict_price = unary(tasks.predict_price)
    chat = unary(tasks.chat)
    stream_chat = stream(tasks.stream_chat)
    ask = unary(tasks.ask)
    stream_ask = stream(tasks.stream_ask)
    retrieve = unary(tasks.retrieve)
    analyze = unary(tasks.analyze)
    stream_analyze = stream(tasks.stream_analyze)

    add_documents = unary(documents.add_documents)
    delete_documents = unary(documents.delete_documents)
    list_documents = unary(documents.list_documents)
    get_index = unary(documents.get_index)
    create_collection = unary(documents.create_collection)
    delete_collection = unary(documents.delete_collection)
    list_collections = unary(documents.list_collections)
    list_generations = unary(documents.list_generations)
    rollback = unary(documents.rollback)
    compact = unary(documents.compact)
    reindex = stream(documents.reindex)

    list_models = unary(administration.list_models)
    get_model = unary(administration.get_model)
    load_model = unary(administration.load_model)
    unload_model = unary(administration.unload_model)
    reload_model = unary(administration.reload_model)
    set_alias = unary(administration.set_alias)
    watch_models = stream(administration.watch_models)
    server_info = unary(administration.server_info)
    get_usage = unary(administration.get_usage)
    list_usage = unary(administration.list_usage)
    watch_usage = stream(administration.watch_usage)
    _check_health = unary(administration.check_health)

    def import_documents(
        self, collection: str, documents: Iterable[Document | Mapping[str, object]], *, timeout: float | None = None
    ) -> rag_pb2.ImportDocumentsResponse:
        """Add any number of documents over one stream. After a failure, the documents sent before it stay.

        It is safe to send all of them again: unchanged documents are not embedded twice.
        """
        options = self._options(timeout, OPEN)
        failures: list[Exception] = []

        def requests() -> Iterator[rag_pb2.ImportDocumentsRequest]:
            """GRPC iterates on a thread of its own and drops the exception that stopped the iteration."""
            try:
                yield from inputs.imports(collection, documents)
            except Exception as error:
                failures.append(error)
                raise

        try:
            return self._stubs.rag.ImportDocuments(requests(), timeout=options.timeout, metadata=options.metadata)
        except grpc.RpcError as error:
            if failures:
                raise failures[0] from None
            raise translate(error, options.request_id) from error

    def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """The state of a service: "SERVING", "NOT_SERVING" or "SERVICE_UNKNOWN".

        "" is the server process, "ready" all services together, others have full names ("quintet.v1.RagService").
        """
        try:
            response = self._check_health(service, timeout=timeout)
        except QuintetError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def wait_ready(self, timeout: float = 60.0, *, service: str = "ready") -> None:
        """Return when the service is SERVING. Raises DeadlineExceeded after `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            try:
                state = self.health(service, timeout=max(0.1, end - time.monotonic()))
            except (Unreachable, DeadlineExceeded) as error:
                state = error.message
            if state == "SERVING":
                return
            if time.monotonic() + POLL_SECONDS >= end:
                raise not_ready(service, timeout, state)
            time.sleep(POLL_SECONDS)
