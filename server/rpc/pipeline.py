"""What happens around every call, in this order, outermost first:

    observe     time the call, count and log how it ended; trace it, if tracing is on
    errors      translate exceptions into statuses
    auth        find the caller, check its roles
    admission   refuse what cannot be served in time
    validation  parse and check the request, and the models that it uses
    limits      refuse what is over the tenant's limits; settle them with the actual cost
    deadline    end what takes too long
    access      check the collection that the request names
    servicer

Handlers are wrapped once, when they are registered: `Registrar` takes the place of the server in the generated
`add_XServicer_to_server` functions. Health and reflection are registered on the server itself and bypass all this.
The two wrappers are written out: a context manager or a generator for each layer would cost more than the layers do
(docs/notes/call-overhead.md).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc

from server.domain.context import BeginTrace, Context, current, set_current
from server.domain.money import Cost
from server.rpc import status, validation
from server.rpc.access import Check, Touch, check_first
from server.rpc.admission import Admission
from server.rpc.auth import Identify
from server.rpc.method_stats import OK, Method
from server.rpc.tenant_limits import EnterLimits, TenantLimits

Parse = Callable[[Any], Any]  # a payload, or the iterator of payloads, to requests
SizeOf = Callable[[Any], int]


class Registrar:
    """Wraps the handlers that the generated functions register, and registers them on the server."""

    def __init__(
        self,
        server: grpc.aio.Server,
        admission: Admission,
        max_request_bytes: int,
        *,
        identify: Identify | None = None,
        touches: Mapping[str, Iterable[Touch]] | None = None,
        limits: TenantLimits | None = None,
        begin_trace: BeginTrace | None = None,
    ) -> None:
        self._server = server
        self._admission = admission
        self._max_bytes = max_request_bytes
        self._identify = identify
        self._touches = touches or {}
        self._limits = limits
        self._begin_trace = begin_trace

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignored: the generated functions also pass the same handlers to add_registered_method_handlers."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register every method of a service with everything around it."""
        wrapped = {name: self._wrap(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, wrapped)

    def _wrap(self, name: str, handler: Any) -> Any:
        # The generated deserializer is the message class's FromString. gRPC gets none, so that bytes arrive here.
        parse: Parse = validation.parser(handler.request_deserializer.__self__, self._max_bytes)
        streaming = handler.request_streaming, handler.response_streaming
        kind = "_".join("stream" if each else "unary" for each in streaming)
        serve = getattr(handler, kind)
        for touch in self._touches.get(name, ()):
            if touch.check is not None:
                parse = partial(_parse_and_check, parse, touch.check)
            if touch.slow_check is not None:
                serve = check_first(
                    touch.slow_check,
                    serve,
                    request_streaming=handler.request_streaming,
                    response_streaming=handler.response_streaming,
                )
        wrap = self._stream if handler.response_streaming else self._unary
        wrapped = wrap(
            self._admission.method(name),
            serve,
            partial(_parse_each, parse) if handler.request_streaming else parse,
            (lambda payloads: 0) if handler.request_streaming else len,
            self._limits.of(name) if self._limits is not None else None,
        )
        return handler._replace(request_deserializer=None, **{kind: wrapped})

    def _unary(self, method: Method, serve: Any, parse: Parse, size_of: SizeOf, enter: EnterLimits | None) -> Any:
        identify, admission, begin_trace = self._identify, self._admission, self._begin_trace

        async def unary(payload: Any, context: Any) -> Any:
            metadata = context.invocation_metadata() or ()
            call, size = admission.identify(method.name, metadata, context), size_of(payload)
            code, reason, response, permit = grpc.StatusCode.CANCELLED, "", None, None
            set_current(call)  # first, so that refusals are logged with its id
            if begin_trace is not None:
                call.trace = begin_trace(call, metadata)
            try:
                if identify is not None:
                    call.caller = identify(method.name, metadata, context)
                admission.enter(call, method, size)
                try:
                    request = parse(payload)
                    if enter is not None:
                        permit = await enter(call, request)
                    if call.client_deadline:  # gRPC cancels the task when it passes
                        response = await serve(request, context)
                    else:
                        async with asyncio.timeout_at(call.deadline):
                            response = await serve(request, context)
                    code = OK
                finally:
                    if permit is not None:
                        permit.settle(Cost(call.spent_tokens, call.spent_micros))
                    admission.leave(call, method, size, succeeded=code is OK)
                context.set_trailing_metadata(call.trailers())
            except Exception as error:
                code, reason = status.send_error(context, error, call)
            finally:
                _end(call, method, code, reason)
            return response

        return unary

    def _stream(self, method: Method, serve: Any, parse: Parse, size_of: SizeOf, enter: EnterLimits | None) -> Any:
        identify, admission, begin_trace = self._identify, self._admission, self._begin_trace

        async def stream(payload: Any, context: Any) -> AsyncIterator[Any]:
            metadata = context.invocation_metadata() or ()
            call, size = admission.identify(method.name, metadata, context), size_of(payload)
            code, reason, permit = grpc.StatusCode.CANCELLED, "", None
            set_current(call)  # first, so that refusals are logged with its id
            if begin_trace is not None:
                call.trace = begin_trace(call, metadata)
            try:
                if identify is not None:
                    call.caller = identify(method.name, metadata, context)
                admission.enter(call, method, size)
                try:
                    request = parse(payload)
                    if enter is not None:
                        permit = await enter(call, request)
                    # aclosing: what the servicer does last, such as accounting, comes before the limits are settled
                    async with asyncio.timeout_at(call.deadline), aclosing(serve(request, context)) as responses:
                        async for response in responses:
                            yield response
                    code = OK
                finally:
                    if permit is not None:
                        permit.settle(Cost(call.spent_tokens, call.spent_micros))
                    admission.leave(call, method, size, succeeded=code is OK)
                context.set_trailing_metadata(call.trailers())
            except Exception as error:
                code, reason = status.send_error(context, error, call)
            finally:
                _end(call, method, code, reason)

        return stream


def _parse_and_check(parse: Parse, check: Check, payload: bytes) -> Any:
    request = parse(payload)
    check(current(), request)
    return request


async def _parse_each(parse: Parse, payloads: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for payload in payloads:
        yield parse(payload)


def _end(call: Context, method: Method, code: grpc.StatusCode, reason: str) -> None:
    """Count, log and trace a call that ended."""
    if code is grpc.StatusCode.CANCELLED and time.monotonic() >= call.deadline:
        code = grpc.StatusCode.DEADLINE_EXCEEDED  # gRPC cancels the task and tells the client this status
    method.end(call, code, reason)
    if call.trace is not None:
        call.trace.end(call, code.name, reason)
