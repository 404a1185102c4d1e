"""What happens around every call, in this order, outermost first:

    observe     time it, count and log how it ended; trace it, if calls are traced
    errors      translate exceptions into statuses
    auth        find out who calls, and whether they may
    admission   refuse what cannot be served
    deadline    end what takes too long
    validation  parse and check the request
    limits      refuse what is over the tenant's limits; settle what it cost
    servicer

Handlers are wrapped once, when they are registered; `Registrar` stands in for the server in the generated
`add_XServicer_to_server` functions. Health and reflection are registered on the server itself and pass nothing here.
The two wrappers are written out rather than built from layers: a context manager or a generator a layer would cost
more than what the layers do (PERFORMANCE.md).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message

from server.domain.context import Context, set_current
from server.rpc import status, validation
from server.rpc.admission import Admission
from server.rpc.auth import Auth
from server.rpc.method_stats import OK, Method
from server.rpc.tenant_limits import TenantLimits

if TYPE_CHECKING:  # it needs packages that are not always there
    from server.observability.tracing import End, Identify, Traces

Checked = Callable[[Any], Any]
# By whether requests and responses are streamed.
_KINDS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Registrar:
    """Wraps the handlers that the generated functions register, and passes them on to the server."""

    def __init__(
        self,
        server: grpc.aio.Server,
        admission: Admission,
        max_request_bytes: int,
        *,
        auth: Auth | None = None,
        limits: TenantLimits | None = None,
        traces: "Traces | None" = None,
    ) -> None:
        self._server = server
        self._admission = admission
        self._max_bytes = max_request_bytes
        self._auth = auth
        self._limits = limits
        self._traces = traces

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignored: the same handlers come by add_registered_method_handlers, with their names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register every method of a service with everything around it."""
        wrapped = {name: self._wrap(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))

    def _wrap(self, name: str, handler: Any) -> Any:
        # The generated deserializer is the message class's FromString; bytes pass, and are parsed inside.
        message_type, max_bytes = handler.request_deserializer.__self__, self._max_bytes
        serve = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        def checked(payload: Any) -> Any:
            """The request; where requests are streamed, the iterator that checks each when it is asked for."""
            if handler.request_streaming:
                return _each_checked(message_type, payload, max_bytes)
            return validation.parse(message_type, payload, max_bytes)

        if self._limits is not None:
            around = self._limits.around_stream if handler.response_streaming else self._limits.around_unary
            serve = around(name, serve)
        wrap = self._stream if handler.response_streaming else self._unary
        return _KINDS[handler.request_streaming, handler.response_streaming](
            wrap(name, serve, checked, _no_size if handler.request_streaming else len),
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )

    def _observed(self, name: str) -> "tuple[Method, Identify, End]":
        """A method, what every call of it begins with, and what it ends with."""
        method = self._admission.method(name)
        if self._traces is None:
            return method, self._admission.identify, method.end
        return method, *self._traces.around(self._admission.identify, method.end)

    def _unary(self, name: str, serve: Any, checked: Checked, size_of: Callable[[Any], int]) -> Any:
        auth, admission = self._auth, self._admission
        method, identify, end = self._observed(name)

        async def unary(payload: Any, context: Any) -> Any:
            metadata = context.invocation_metadata() or ()
            call, size = identify(name, metadata, context), size_of(payload)
            code, reason, response = grpc.StatusCode.CANCELLED, "", None
            set_current(call)  # first, so that refusals are logged with its id
            try:
                if auth is not None:
                    call.caller = auth.identify(name, metadata, context)
                admission.enter(call, method, size)
                try:
                    if call.brought_deadline:  # gRPC cancels the task when it passes
                        response = await serve(checked(payload), context)
                    else:
                        async with asyncio.timeout_at(call.deadline):
                            response = await serve(checked(payload), context)
                    code = OK
                finally:
                    admission.leave(call, method, size, succeeded=code is OK)
                context.set_trailing_metadata(call.trailers())
            except Exception as error:
                told = status.translate(error, call.request_id)
                code, reason = status.code_of(told), told.reason
                status.tell(context, told, call)
                del told  # it knows this frame, which would know it: garbage that waits for a collection
            finally:
                end(call, *_ended(code, reason, call))
            return response

        return unary

    def _stream(self, name: str, serve: Any, checked: Checked, size_of: Callable[[Any], int]) -> Any:
        auth, admission = self._auth, self._admission
        method, identify, end = self._observed(name)

        async def stream(payload: Any, context: Any) -> AsyncIterator[Any]:
            metadata = context.invocation_metadata() or ()
            call, size = identify(name, metadata, context), size_of(payload)
            code, reason = grpc.StatusCode.CANCELLED, ""
            set_current(call)  # first, so that refusals are logged with its id
            try:
                if auth is not None:
                    call.caller = auth.identify(name, metadata, context)
                admission.enter(call, method, size)
                try:
                    async with asyncio.timeout_at(call.deadline):
                        async for response in serve(checked(payload), context):
                            yield response
                    code = OK
                finally:
                    admission.leave(call, method, size, succeeded=code is OK)
                context.set_trailing_metadata(call.trailers())
            except Exception as error:
                told = status.translate(error, call.request_id)
                code, reason = status.code_of(told), told.reason
                status.tell(context, told, call)
                del told  # it knows this frame, which would know it: garbage that waits for a collection
            finally:
                end(call, *_ended(code, reason, call))

        return stream


def _no_size(payloads: object) -> int:
    return 0


async def _each_checked(message_type: type[Message], payloads: AsyncIterator[bytes], max_bytes: int) -> Any:
    async for payload in payloads:
        yield validation.parse(message_type, payload, max_bytes)


def _ended(code: grpc.StatusCode, reason: str, call: Context) -> tuple[grpc.StatusCode, str]:
    """How the caller sees the end: gRPC cancels what is past its deadline, and tells the caller so."""
    if code is grpc.StatusCode.CANCELLED and time.monotonic() >= call.deadline:
        return grpc.StatusCode.DEADLINE_EXCEEDED, reason
    return code, reason
