"""Registers the services that require no authentication, health and reflection, with bounds on what they cost."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from server.domain.errors import DeadlineExceeded, ServerOverloaded, ServerStopping
from server.rpc import receiving
from server.rpc.receiving import Receiving

_REQUESTS = 16  # that are received at once
_REQUEST_BYTES = 64 * 1024
_STREAMS, _STREAMS_OF_A_HOST = 1000, 100  # open Health.Watch and reflection calls
_CODES = {
    ServerOverloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ServerStopping: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Anonymous:
    """Takes the place of the server in generated `add_XServicer_to_server` functions.

    As in the pipeline, gRPC calls the handlers before it has received a request. Streams are limited in total and for
    each host, because a client that only opens them costs memory.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self._receiving = Receiving(_REQUESTS)
        self._streams: Counter[str] = Counter()  # by host

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignored: the generated functions also pass the same handlers to add_registered_method_handlers."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register every method of a service."""
        wrapped = {name: self._wrap(handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, wrapped)

    def stop(self) -> None:
        """End the calls that wait for a message of their client."""
        self._receiving.stop()

    def _wrap(self, handler: Any) -> Any:
        parse = handler.request_deserializer

        async def unary(_: Any, context: Any) -> Any:
            return await handler.unary_unary(await self._one(parse, context), context)

        async def stream(_: Any, context: Any) -> None:
            host = context.peer().rpartition(":")[0]
            if self._streams[host] >= _STREAMS_OF_A_HOST or self._streams.total() >= _STREAMS:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many open streams")
            self._streams[host] += 1
            try:
                if handler.request_streaming:
                    responses = handler.stream_stream(self._each(parse, context), context)
                else:
                    responses = handler.unary_stream(await self._one(parse, context), context)
                async for response in responses:
                    await context.write(response)
            finally:
                self._streams[host] -= 1
                if not self._streams[host]:
                    del self._streams[host]

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, response_serializer=handler.response_serializer)
        return grpc.stream_unary_rpc_method_handler(unary, response_serializer=handler.response_serializer)

    async def _one(self, parse: Any, context: Any) -> Any:
        async for request in self._each(parse, context):
            return request
        return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call ended without a request")

    async def _each(self, parse: Any, context: Any) -> AsyncIterator[Any]:
        """The requests of a call. Aborts it if one does not arrive in time, is too large, or cannot be parsed."""
        try:
            while (payload := await self._next(context)) is not None:
                if len(payload) > _REQUEST_BYTES:
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"larger than {_REQUEST_BYTES} bytes")
                yield parse(payload)
        except (ServerOverloaded, ServerStopping, DeadlineExceeded) as error:
            await context.abort(_CODES[type(error)], error.message)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request cannot be parsed")

    async def _next(self, context: Any) -> bytes | None:
        return await self._receiving.message(context, context.peer(), time.monotonic() + receiving.SECONDS)
