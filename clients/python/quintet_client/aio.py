"""The client for asyncio. Its methods are those of `client.py`, as coroutines and async generators."""
# ruff: noqa: ASYNC109 - a timeout here is the deadline that is sent to the server, and readiness is polled

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from quintet.v1 import rag_pb2, rag_pb2_grpc

from quintet_client import inputs
from quintet_client.calls import OPEN, Call, StreamCall, Stubs, administration, documents, tasks
from quintet_client.connection import POLL_SECONDS, Connection, channel_options, not_ready
from quintet_client.errors import DeadlineExceeded, QuintetError, Unreachable, translate
from quintet_client.inputs import Document

P = ParamSpec("P")
R = TypeVar("R", bound=Message)


def unary(
    describe: Callable[Concatenate[Stubs, P], Call[R]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """A coroutine method that makes the described call."""

    @wraps(describe)
    async def method(self: AsyncQuintetClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        call = describe(self._stubs, *args, **kwargs)
        options = self._options(call.timeout, call.default)
        try:
            response: R = await call.method(call.request, timeout=options.timeout, metadata=options.metadata)
        except grpc.RpcError as error:
            raise translate(error, options.request_id) from error
        return response

    return method


def stream(
    describe: Callable[Concatenate[Stubs, P], StreamCall[R]],
) -> Callable[Concatenate[Any, P], AsyncGenerator[R, None]]:
    """A method that iterates over the responses of the described call."""

    async def responses(self: AsyncQuintetClient, call: StreamCall[R]) -> AsyncGenerator[R, None]:
        options = self._options(call.timeout, call.default)
        running = call.method(call.request, timeout=options.timeout, metadata=options.metadata)
        try:
            async for message in running:
                yield message
        except grpc.RpcError as error:
            raise translate(error, options.request_id) from error
        finally:
            running.cancel()

    @wraps(describe)
    def method(self: AsyncQuintetClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[R, None]:
        return responses(self, describe(self._stubs, *args, **kwargs))

    return method


class AsyncQuintetClient(Connection):
    """A connection to Quintet for one event loop. Parameters, deadlines and retries are those of QuintetClient.

    To leave a stream early, close it: `async with contextlib.aclosing(client.stream_chat(...)) as events`.
    """

    def _open(self, address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        if credentials:
            return grpc.aio.secure_channel(address, credentials, channel_options(address))
        return grpc.aio.insecure_channel(address, channel_options(address))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        await self._channel.close()

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

    async def import_documents(
        self, collection: str, documents: Iterable[Document | Mapping[str, object]], *, timeout: float | None = None
    ) -> rag_pb2.ImportDocumentsResponse:
        """Add any number of documents over one stream. After a failure, the documents sent before it stay.

        It is safe to send all of them again: unchanged documents are not embedded twice.
        """
        options = self._options(timeout, OPEN)
        rag = cast("rag_pb2_grpc.RagServiceAsyncStub", self._stubs.rag)
        call = rag.ImportDocuments(timeout=options.timeout, metadata=options.metadata)
        try:
            with contextlib.suppress(asyncio.InvalidStateError):  # the server ended the call; awaiting it raises why
                for request in inputs.imports(collection, documents):
                    await call.write(request)
                await call.done_writing()
            return await call
        except grpc.RpcError as error:
            raise translate(error, options.request_id) from error
        finally:
            call.cancel()

    async def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """The state of a service: "SERVING", "NOT_SERVING" or "SERVICE_UNKNOWN".

        "" is the server process, "ready" all services together, others have full names ("quintet.v1.RagService").
        """
        try:
            response = await self._check_health(service, timeout=timeout)
        except QuintetError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    async def wait_ready(self, timeout: float = 60.0, *, service: str = "ready") -> None:
        """Return when the service is SERVING. Raises DeadlineExceeded after `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            try:
                state = await self.health(service, timeout=max(0.1, end - time.monotonic()))
            except (Unreachable, DeadlineExceeded) as error:
                state = error.message
            if state == "SERVING":
                return
            if time.monotonic() + POLL_SECONDS >= end:
                raise not_ready(service, timeout, state)
            await asyncio.sleep(POLL_SECONDS)
