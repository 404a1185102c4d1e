"""The one table from what went wrong to what is said on the wire (AIP-193)."""

import logging
import math
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from server.domain import errors
from server.domain.context import Context

log = logging.getLogger(__name__)
Code = grpc.StatusCode
DOMAIN = "quintet.v1"

# The first class that fits decides, so subclasses stand before their bases.
CODES: tuple[tuple[type[errors.QuintetError], grpc.StatusCode], ...] = (
    (errors.InvalidRequest, Code.INVALID_ARGUMENT),
    (errors.MessageTooLarge, Code.RESOURCE_EXHAUSTED),
    (errors.Unauthenticated, Code.UNAUTHENTICATED),
    (errors.PermissionDenied, Code.PERMISSION_DENIED),
    (errors.RequestIdReused, Code.FAILED_PRECONDITION),
    (errors.BudgetExhausted, Code.RESOURCE_EXHAUSTED),
    (errors.NotFound, Code.NOT_FOUND),
    (errors.CollectionExists, Code.ALREADY_EXISTS),
    (errors.ServerOverloaded, Code.RESOURCE_EXHAUSTED),
    (errors.QuotaExceeded, Code.RESOURCE_EXHAUSTED),
    (errors.StorageFull, Code.RESOURCE_EXHAUSTED),
    (errors.Unavailable, Code.UNAVAILABLE),
    (errors.ModelUnavailable, Code.FAILED_PRECONDITION),
    (errors.ModelCheckFailed, Code.FAILED_PRECONDITION),
    (errors.ModelDoesNotFit, Code.RESOURCE_EXHAUSTED),
    (errors.CollectionUnavailable, Code.FAILED_PRECONDITION),
    (errors.UpstreamTimeout, Code.DEADLINE_EXCEEDED),
    (errors.DeadlineExceeded, Code.DEADLINE_EXCEEDED),
)
# Trailers over about 8 KiB turn any status into RESOURCE_EXHAUSTED, so details are bounded.
_MAX_VIOLATIONS = 20
_MAX_TEXT = 300
_SOME_ID = b"\x7f" * 32  # as long as the ids that admission gives; callers' ids are without this character


def translate(error: Exception, request_id: str) -> errors.QuintetError:
    """The exception that is told to the caller. Foreign ones go to the log and become a bare INTERNAL."""
    if isinstance(error, errors.QuintetError):
        return error
    if isinstance(error, TimeoutError):
        return errors.DeadlineExceeded("the call took longer than its deadline")
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return errors.QuintetError(f"internal error; the server's log has it under request id {request_id}")


def code_of(error: errors.QuintetError) -> grpc.StatusCode:
    """The status code of an exception of ours."""
    return next((code for kind, code in CODES if isinstance(error, kind)), Code.INTERNAL)


def tell(context: Any, error: errors.QuintetError, call: Context) -> None:
    """Give the call the status of `error` and its details. gRPC sends no response with it, whatever is returned.

    `context.abort` would raise an exception that the call's state holds, and whose traceback holds the call's state: 50
    objects of garbage a refusal, and a flood of them means collections that hold the GIL for tens of milliseconds.
    """
    code = code_of(error)
    if isinstance(error, errors.ServerOverloaded) and not error.metadata and len(call.request_id) == len(_SOME_ID):
        status = _refusal(error.message, error.retry_after).replace(_SOME_ID, call.request_id.encode())
    else:
        status = _status(error, call.request_id)
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status), *call.trailers()]
    if isinstance(error, errors.Unavailable | errors.BudgetExhausted):
        trailers.append(("grpc-retry-pushback-ms", str(_milliseconds(error.retry_after))))
    context.set_code(code)
    context.set_details(_cut(error.message))
    context.set_trailing_metadata(tuple(trailers))


@lru_cache(maxsize=256)
def _refusal(message: str, retry_after: float) -> bytes:
    """The status of a ServerOverloaded with _SOME_ID in it: under a flood only the ids differ."""
    return _status(errors.ServerOverloaded(message, retry_after=retry_after), _SOME_ID.decode())


def _status(error: errors.QuintetError, request_id: str) -> bytes:
    """A google.rpc.Status."""
    status = status_pb2.Status(code=code_of(error).value[0], message=_cut(error.message))
    status.details.extend(_pack(detail) for detail in _details(error, request_id))
    serialized: bytes = status.SerializeToString()
    return serialized


def _details(error: errors.QuintetError, request_id: str) -> list[Message]:
    metadata = {name: _cut(value) for name, value in error.metadata.items()}
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={**metadata, "request_id": request_id})
    ]
    if isinstance(error, errors.InvalidRequest):
        details.append(_bad_request(error.violations))
    if isinstance(error, errors.QuotaExceeded | errors.BudgetExhausted):
        details.append(
            error_details_pb2.QuotaFailure(
                violations=[
                    error_details_pb2.QuotaFailure.Violation(subject=_cut(subject), description=_cut(description))
                    for subject, description in error.excesses
                ]
            )
        )
    if isinstance(error, errors.Unavailable | errors.BudgetExhausted) and math.isfinite(error.retry_after):
        delay = Duration()
        delay.FromMilliseconds(_milliseconds(error.retry_after))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _milliseconds(seconds: float) -> int:
    """Rounded up, or the caller would be early. -1 asks gRPC's clients not to retry."""
    return math.ceil(seconds * 1000) if math.isfinite(seconds) else -1


def _bad_request(violations: tuple[errors.Violation, ...]) -> error_details_pb2.BadRequest:
    shown = [
        error_details_pb2.BadRequest.FieldViolation(field=_cut(field), description=_cut(description))
        for field, description in violations[:_MAX_VIOLATIONS]
    ]
    if (more := len(violations) - len(shown)) > 0:
        shown.append(error_details_pb2.BadRequest.FieldViolation(description=f"and {more} more"))
    return error_details_pb2.BadRequest(field_violations=shown)


def _pack(detail: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
