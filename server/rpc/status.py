"""From exceptions to `google.rpc.Status` on the wire (AIP-193)."""

import logging
import math
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from server.domain import errors
from server.domain.context import Context

log = logging.getLogger(__name__)
Code = grpc.StatusCode
DOMAIN = "quintet.v1"

# The first class that matches decides, so subclasses come before their bases.
CODES: tuple[tuple[type[errors.QuintetError], grpc.StatusCode], ...] = (
    (errors.InvalidRequest, Code.INVALID_ARGUMENT),
    (errors.MessageTooLarge, Code.RESOURCE_EXHAUSTED),
    (errors.Unauthenticated, Code.UNAUTHENTICATED),
    (errors.PermissionDenied, Code.PERMISSION_DENIED),
    (errors.RequestIdReused, Code.FAILED_PRECONDITION),
    (errors.NotFound, Code.NOT_FOUND),
    (errors.CollectionExists, Code.ALREADY_EXISTS),
    (errors.ServerOverloaded, Code.RESOURCE_EXHAUSTED),
    (errors.QuotaExceeded, Code.RESOURCE_EXHAUSTED),
    (errors.StorageFull, Code.RESOURCE_EXHAUSTED),
    (errors.UpstreamQuotaExhausted, Code.RESOURCE_EXHAUSTED),
    (errors.Unavailable, Code.UNAVAILABLE),
    (errors.ModelUnavailable, Code.FAILED_PRECONDITION),
    (errors.ModelCheckFailed, Code.FAILED_PRECONDITION),
    (errors.ModelDoesNotFit, Code.RESOURCE_EXHAUSTED),
    (errors.CollectionUnavailable, Code.FAILED_PRECONDITION),
    (errors.UpstreamTimeout, Code.DEADLINE_EXCEEDED),
    (errors.DeadlineExceeded, Code.DEADLINE_EXCEEDED),
)
# gRPC's clients turn a status with more than about 8 KiB of trailers into another error, so all texts are bounded, in
# bytes: the message is written with three characters a byte, and the details with four for three bytes.
_MAX_VIOLATIONS = 20
_MAX_VIOLATIONS_BYTES = 2000
_MAX_TEXT_BYTES = 300
_TIMER_SECONDS = 0.01  # timers of the event loop may be early by its resolution
_SOME_ID = b"\x7f" * 32  # as long as the ids that admission makes; clients' ids cannot contain this character


class Failure(NamedTuple):
    """How a call ends on the wire. It refers to no exception, and so to no frames."""

    code: grpc.StatusCode
    reason: str
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def failure(error: Exception, call: Context) -> Failure:
    """The status of `error` with its details."""
    sent = _translate(error, call)
    if isinstance(sent, errors.ServerOverloaded) and not sent.metadata and len(call.request_id) == len(_SOME_ID):
        status = _refusal(sent.message, sent.retry_after).replace(_SOME_ID, call.request_id.encode())
    else:
        status = _status(sent, call.request_id)
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status), *call.trailers()]
    if isinstance(sent, errors.Unavailable):
        trailers.append(("grpc-retry-pushback-ms", str(_milliseconds(sent.retry_after))))
    return Failure(code_of(sent), sent.reason, _cut(sent.message), tuple(trailers))


async def send(context: Any, failed: Failure) -> bool:
    """End the call with this status. If nothing was sent before, it is all that is sent ("Trailers-Only").

    False if gRPC cannot send it: the client has left, or it reads nothing and the first message is still on its way.

    With `set_code` a unary handler would send an empty message first, and then neither clients nor proxies retry.
    Call it outside of any `except` block: `abort` raises an exception that gRPC keeps with the call, and one that
    refers to frames with the call would be a cycle of 50 objects, garbage for a search that holds the GIL.
    """
    try:
        await context.abort(failed.code, failed.message, failed.trailers)
    except grpc.aio.BaseError as aborted:  # always; gRPC knows that the call has ended
        aborted.__traceback__ = None
        return isinstance(aborted, grpc.aio.AbortError)
    return True


def code_of(error: errors.QuintetError) -> grpc.StatusCode:
    return next((code for kind, code in CODES if isinstance(error, kind)), Code.INTERNAL)


def _translate(error: Exception, call: Context) -> errors.QuintetError:
    """The error for the caller. Unexpected exceptions go to the log and become INTERNAL without details.

    A timeout before the call's deadline is one of them: it is a timeout of something inside.
    """
    if isinstance(error, errors.QuintetError):
        return error
    if isinstance(error, TimeoutError) and time.monotonic() >= call.deadline - _TIMER_SECONDS:
        return errors.DeadlineExceeded("the call took longer than its deadline")
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return errors.QuintetError(f"internal error; the server's log has details under request id {call.request_id}")


@lru_cache(maxsize=256)
def _refusal(message: str, retry_after: float) -> bytes:
    """The status of a ServerOverloaded with _SOME_ID in it: under a flood only the request ids differ."""
    return _status(errors.ServerOverloaded(message, retry_after=retry_after), _SOME_ID.decode())


def _status(error: errors.QuintetError, request_id: str) -> bytes:
    """A google.rpc.Status."""
    status = status_pb2.Status(code=code_of(error).value[0], message=_cut(error.message))
    for detail in _details(error, request_id):
        status.details.add().Pack(detail)
    serialized: bytes = status.SerializeToString()
    return serialized


def _details(error: errors.QuintetError, request_id: str) -> Iterator[Message]:
    metadata = {name: _cut(value) for name, value in error.metadata.items()} | {"request_id": request_id}
    yield error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    if isinstance(error, errors.InvalidRequest):
        field = error_details_pb2.BadRequest.FieldViolation
        first = error.violations[:_MAX_VIOLATIONS]
        shown = _that_fit([field(field=_cut(each.field), description=_cut(each.description)) for each in first])
        if (more := len(error.violations) - len(shown)) > 0:
            shown.append(field(description=f"and {more} more"))
        yield error_details_pb2.BadRequest(field_violations=shown)
    if isinstance(error, errors.QuotaExceeded):
        quota = error_details_pb2.QuotaFailure.Violation
        violations = [quota(subject=_cut(each.subject), description=_cut(each.description)) for each in error.excesses]
        yield error_details_pb2.QuotaFailure(violations=_that_fit(violations))
    if isinstance(error, errors.Unavailable) and math.isfinite(error.retry_after):
        delay = timedelta(milliseconds=_milliseconds(error.retry_after))
        yield error_details_pb2.RetryInfo(retry_delay=delay)


def _milliseconds(seconds: float) -> int:
    """Rounded up, so that no client retries too early. -1 tells gRPC's clients not to retry."""
    return math.ceil(seconds * 1000) if math.isfinite(seconds) else -1


def _that_fit(violations: list[Any]) -> list[Any]:
    """The first of them, as many as may be sent."""
    sizes = accumulate(each.ByteSize() for each in violations)
    return violations[: sum(size <= _MAX_VIOLATIONS_BYTES for size in sizes)]


def _cut(text: str) -> str:
    """At most _MAX_TEXT_BYTES of it, as valid UTF-8."""
    if len(text) <= _MAX_TEXT_BYTES and text.isascii():
        return text
    encoded = text.encode(errors="replace")
    if len(encoded) > _MAX_TEXT_BYTES:
        return encoded[: _MAX_TEXT_BYTES - 3].decode(errors="ignore") + "…"
    return encoded.decode()
