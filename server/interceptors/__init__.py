"""What happens around every call, in this order, outermost first:

    observe     time it, log how it ended
    errors      translate exceptions into statuses
    admission   refuse what cannot be served
    deadline    end what takes too long
    validation  parse and check the request
    servicer

Handlers are wrapped once, when they are registered; `Registrar` stands in for the server in the generated
`add_XServicer_to_server` functions. Health and reflection are registered on the server itself and pass nothing here.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message

from server import calls
from server.interceptors import errors, validation
from server.interceptors.admission import Admission
from server.interceptors.observe import Outcome, observe

# By whether requests and responses are streamed.
_KINDS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Registrar:
    """Wraps the handlers that the generated functions register, and passes them on to the server."""

    def __init__(self, server: grpc.aio.Server, admission: Admission, max_request_bytes: int) -> None:
        self._server = server
        self._admission = admission
        self._max_bytes = max_request_bytes

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignored: the same handlers come by add_registered_method_handlers, with their names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register every method of a service with everything around it."""
        wrapped = {name: self._wrap(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))

    def _wrap(self, method: str, handler: Any) -> Any:
        # The generated deserializer is the message class's FromString; bytes pass, and are parsed inside.
        message_type = handler.request_deserializer.__self__
        serve = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        def checked(payload: Any) -> Any:
            """The request; where requests are streamed, the iterator that checks each when it is asked for."""
            if handler.request_streaming:
                return self._each_checked(message_type, payload)
            return validation.parse(message_type, payload, self._max_bytes)

        async def unary(payload: Any, context: Any) -> Any:
            call = self._identify(method, context)
            with observe(call) as outcome:
                try:
                    with self._entered(call):
                        async with _deadline(call):
                            return await serve(checked(payload), context)
                except Exception as error:
                    await self._abort(context, error, call, outcome)

        async def stream(payload: Any, context: Any) -> AsyncIterator[Any]:
            call = self._identify(method, context)
            with observe(call) as outcome:
                try:
                    with self._entered(call):
                        async with _deadline(call):
                            async for response in serve(checked(payload), context):
                                yield response
                except Exception as error:
                    await self._abort(context, error, call, outcome)

        return _KINDS[handler.request_streaming, handler.response_streaming](
            stream if handler.response_streaming else unary,
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )

    async def _each_checked(self, message_type: type[Message], payloads: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for payload in payloads:
            yield validation.parse(message_type, payload, self._max_bytes)

    def _identify(self, method: str, context: Any) -> calls.Call:
        call = self._admission.identify(method, context)
        context.set_trailing_metadata((("x-request-id", call.request_id),))
        return call

    @contextmanager
    def _entered(self, call: calls.Call) -> Iterator[None]:
        with self._admission.admit(call):
            calls.enter(call)
            yield

    @staticmethod
    async def _abort(context: Any, error: Exception, call: calls.Call, outcome: Outcome) -> None:
        told = errors.translate(error, call.request_id)
        outcome.code, outcome.reason = errors.code_of(told), told.reason
        await errors.abort(context, told, call.request_id)


def _deadline(call: calls.Call) -> asyncio.Timeout:
    """A call that brought no deadline ends at the default one; others are cancelled by gRPC, or here, if sooner."""
    return asyncio.timeout_at(call.deadline)
