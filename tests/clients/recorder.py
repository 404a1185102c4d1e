"""Records every call of the small server, and fails those that a test wants to fail."""

import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status


@dataclass(frozen=True)
class Failure:
    """How a call fails; without a reason, as if gRPC had failed and not Quintet."""

    code: grpc.StatusCode
    reason: str = ""
    message: str = "it failed"
    retry_after: float | None = None
    violations: Sequence[tuple[str, str]] = ()
    more: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Seen:
    """A call that arrived."""

    method: str
    request: Message
    metadata: dict[str, str]
    seconds: float


@dataclass
class Recorder:
    """The calls that arrived, and the failures planned for each method."""

    seen: list[Seen] = field(default_factory=list)
    failures: defaultdict[str, deque[Failure]] = field(default_factory=lambda: defaultdict(deque))
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when a StreamChat has ended, for any reason."""

    def record(self, method: str, request: Message, context: grpc.ServicerContext) -> None:
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        self.seen.append(Seen(method, request, metadata, context.time_remaining()))
        if self.failures[method]:
            abort(context, self.failures[method].popleft(), metadata.get("x-request-id", ""))

    def methods(self) -> list[str]:
        return [call.method for call in self.seen]


class RecordingInterceptor(grpc.ServerInterceptor):
    """Records every call, or every request of a stream, before the servicer gets it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        method = details.method.rpartition("/")[2]

        def recorded(request: Any, context: Any) -> Any:
            self._recorder.record(method, request, context)
            return request

        if handler.request_streaming:
            return handler._replace(
                stream_unary=lambda requests, context: handler.stream_unary(
                    (recorded(request, context) for request in requests), context
                )
            )
        if handler.response_streaming:
            return handler._replace(
                unary_stream=lambda request, context: handler.unary_stream(recorded(request, context), context)
            )
        return handler._replace(
            unary_unary=lambda request, context: handler.unary_unary(recorded(request, context), context)
        )


def abort(context: grpc.ServicerContext, failure: Failure, request_id: str) -> None:
    """End the call with the details that Quintet sends (AIP-193)."""
    if not failure.reason:
        context.abort(failure.code, failure.message)
    info = {"request_id": request_id, **dict(failure.more)}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=failure.reason, domain="quintet.v1", metadata=info)]
    if failure.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(int(failure.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(delay.ToMilliseconds())),))
    if failure.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=at, description=what) for at, what in failure.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    status = status_pb2.Status(code=code_pb2.Code.Value(failure.code.name), message=failure.message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    rich = rpc_status.to_status(status)
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), *rich.trailing_metadata))
    context.abort(failure.code, failure.message)
