"""What happens around every call, in this order, outermost first:

    observe     time the call, count and log how it ended; trace it, if tracing is on
    errors      translate exceptions into statuses
    auth        find the caller, check its roles
    receiving   receive the request
    admission   refuse what cannot be served in time
    validation  parse and check the request, and the models that it uses
    limits      refuse what is over the tenant's limits; settle them with the actual cost
    deadline    end what takes too long
    access      check the collection that the request names
    servicer

Handlers are wrapped once, when they are registered: `Registrar` takes the place of the server in the generated
`add_XServicer_to_server` functions. Health and reflection bypass all this (`anonymous.py`).
The two wrappers are written out: a context manager or a generator for each layer would cost more than the layers do
(docs/notes/call-overhead.md).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
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
from server.rpc.open_calls import OpenCalls
from server.rpc.receiving import Receiving
from server.rpc.tenant_limits import EnterLimits, TenantLimits

log = logging.getLogger(__name__)
Parse = Callable[[Any], Any]  # a payload, or the iterator of payloads, to requests
Receive = Callable[[Any, Context], Awaitable[tuple[Any, int]]]  # a payload, or the iterator of payloads, and its size
_MOST_BYTES_RECEIVED = 128 * 1024 * 1024  # by all calls whose requests have not yet arrived
_OWN = "quintet."  # what the services that are drained begin with
_QUIET_SECONDS, _MOST_QUIET_SECONDS = 0.05, 2.0  # without a call, before the server is shut down


class Registrar:
    """Wraps the handlers that the generated functions register, and registers them on the server.

    gRPC is told that all requests are streams, so that it calls the handlers before it has received a request.
    """

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
        self._receiving = Receiving(max(4, _MOST_BYTES_RECEIVED // max_request_bytes))
        self._open = OpenCalls()

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignored: the generated functions also pass the same handlers to add_registered_method_handlers."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register every method of a service with everything around it."""
        wrapped = {name: self._wrap(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, wrapped)

    async def drain(self, seconds: float) -> None:
        """Refuse calls from now on, and wait until those that run have ended, so many seconds at most.

        Then it waits until no more calls come: gRPC answers a call that arrives while it shuts down with CANCELLED.
        """
        until = time.monotonic() + seconds
        self._admission.stopping = True
        self._receiving.stop()
        if left := await self._open.ended(_OWN, seconds):
            log.warning("%d calls did not end within %g s", left, seconds)
        quiet = min(until, time.monotonic() + _MOST_QUIET_SECONDS)
        before = -1
        while before != (now := self._admission.refused["stopping"]) and time.monotonic() < quiet:
            before = now
            await asyncio.sleep(_QUIET_SECONDS)

    def _wrap(self, name: str, handler: Any) -> Any:
        # The generated deserializer is the message class's FromString. gRPC gets none, so that bytes arrive here.
        parse: Parse = validation.parser(handler.request_deserializer.__self__, self._max_bytes)
        streaming = handler.request_streaming, handler.response_streaming
        serve = getattr(handler, "_".join("stream" if each else "unary" for each in streaming))
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
        wrap, made = (
            (self._stream, grpc.stream_stream_rpc_method_handler)
            if handler.response_streaming
            else (self._unary, grpc.stream_unary_rpc_method_handler)
        )
        wrapped = wrap(
            self._admission.method(name),
            serve,
            self._receiving.each if handler.request_streaming else self._receiving.one,
            partial(_parse_each, parse) if handler.request_streaming else parse,
            self._limits.of(name) if self._limits is not None else None,
        )
        return made(wrapped, response_serializer=handler.response_serializer)

    def _unary(self, method: Method, serve: Any, receive: Receive, parse: Parse, enter: EnterLimits | None) -> Any:
        identify, admission, begin_trace, open_calls = self._identify, self._admission, self._begin_trace, self._open

        async def unary(_: Any, context: Any) -> Any:
            metadata = context.invocation_metadata() or ()
            call = admission.identify(method.name, metadata, context)
            code, reason, response, permit, failure = grpc.StatusCode.CANCELLED, "", None, None, None
            set_current(call)  # first, so that refusals are logged with its id
            if not call.client_deadline:
                open_calls.limit(call)
            if begin_trace is not None:
                call.trace = begin_trace(call, metadata)
            try:
                if identify is not None:
                    call.caller = identify(method.name, metadata, context)
                admission.check(call, method)
                payload, size = await receive(context, call)
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
                failure = status.failure(error, call)
                code, reason = failure.code, failure.reason
            finally:
                _end(call, method, code, reason)
            if failure is not None and not await status.send(context, failure):
                await open_calls.reset_current()
            return response

        return unary

    def _stream(self, method: Method, serve: Any, receive: Receive, parse: Parse, enter: EnterLimits | None) -> Any:
        identify, admission, begin_trace, open_calls = self._identify, self._admission, self._begin_trace, self._open

        async def stream(_: Any, context: Any) -> None:
            metadata = context.invocation_metadata() or ()
            call = admission.identify(method.name, metadata, context)
            code, reason, permit, failure = grpc.StatusCode.CANCELLED, "", None, None
            set_current(call)  # first, so that refusals are logged with its id
            if not call.client_deadline:
                open_calls.limit(call)
            if begin_trace is not None:
                call.trace = begin_trace(call, metadata)
            try:
                if identify is not None:
                    call.caller = identify(method.name, metadata, context)
                admission.check(call, method)
                payload, size = await receive(context, call)
                admission.enter(call, method, size)
                try:
                    request = parse(payload)
                    if enter is not None:
                        permit = await enter(call, request)
                    # aclosing: what the servicer does last, such as accounting, comes before the limits are settled
                    async with asyncio.timeout_at(call.deadline), aclosing(serve(request, context)) as responses:
                        async for response in responses:
                            await context.write(response)
                    code = OK
                finally:
                    if permit is not None:
                        permit.settle(Cost(call.spent_tokens, call.spent_micros))
                    admission.leave(call, method, size, succeeded=code is OK)
                context.set_trailing_metadata(call.trailers())
            except grpc.aio.InternalError:
                log.debug("%s: the client left while its answer was sent", method.name)
            except Exception as error:
                failure = status.failure(error, call)
                code, reason = failure.code, failure.reason
            finally:
                _end(call, method, code, reason)
            if failure is not None and not await status.send(context, failure):
                await open_calls.reset_current()

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
