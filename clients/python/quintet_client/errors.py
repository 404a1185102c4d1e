"""What can go wrong, as exceptions: one class a reason of quintet.v1.ErrorReason, all of them QuintetErrors."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "quintet.v1"
M = TypeVar("M", bound=Message)


class Violation(NamedTuple):
    """One broken limit: the field's path in the request ("houses[0].neighborhood") and what it asks for."""

    field: str
    description: str


class QuintetError(Exception):
    """A call failed.

    `code` is the gRPC status, `reason` a name of ErrorReason without its prefix (empty if no Quintet server made the
    error), `request_id` what the server's log calls the request (empty if nothing was sent), `retry_after` the
    seconds after which another try makes sense (None if the server did not say), `violations` the broken limits.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        request_id: str = "",
        retry_after: float | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.request_id = request_id
        self.retry_after = retry_after
        self.violations = tuple(violations)


class InvalidRequest(QuintetError):
    """The request breaks limits; `violations` says which."""


class Unauthenticated(QuintetError):
    """No API key or client certificate, or one that is not known or has expired."""


class PermissionDenied(QuintetError):
    """The tenant may not use this method, service or model."""


class RequestIdReused(QuintetError):
    """The request id belongs to another call of the last day; send a new one."""


class QuotaExceeded(QuintetError):
    """The tenant's rate or number of calls at once is spent; `retry_after` says until when."""


class BudgetExhausted(QuintetError):
    """The tenant's budget of the day or month is spent; `retry_after` says until when."""


class LedgerUnavailable(QuintetError):
    """What the call costs could not be written down, so it was not begun; come back after `retry_after`."""


class ServerOverloaded(QuintetError):
    """The server is full; come back after `retry_after`."""


class ServerStopping(QuintetError):
    """The server takes no new work; another one may."""


class MessageTooLarge(QuintetError):
    """The request is over the server's size limit."""


class ModelLoading(QuintetError):
    """The model is being read and checked; come back after `retry_after`."""


class ModelNotFound(QuintetError):
    """No model has this name; the message lists the names that exist."""


class ModelDoesNotFit(QuintetError):
    """The model needs more memory than the server has left for it."""


class ModelUnavailable(QuintetError):
    """The artefact is missing or broken; an operator must act."""


class ModelCheckFailed(QuintetError):
    """The version answers its golden inputs otherwise than when it was made; what was served still is."""


class ModelVersionNotFound(QuintetError):
    """The model has no such version or alias; the message lists those that exist."""


class RegistryFailed(QuintetError):
    """The model registry cannot be reached or refused; come back after `retry_after`."""


class UpstreamFailed(QuintetError):
    """The language model's endpoint failed or refused."""


class UpstreamTimeout(QuintetError):
    """The language model's endpoint did not answer in time."""


class CollectionNotFound(QuintetError):
    """No collection has this name; the message lists the names that exist."""


class CollectionExists(QuintetError):
    """There is a collection of this name."""


class CollectionBroken(QuintetError):
    """No generation of the collection is whole; the message says what to do."""


class EmbedderMismatch(QuintetError):
    """Another embedder made the collection; `reindex` mends that."""


class GenerationNotFound(QuintetError):
    """The generation is not kept; the message lists those that are."""


class GenerationNotReached(QuintetError):
    """The collection has not come to `min_generation`; come back after `retry_after`."""


class StorageFull(QuintetError):
    """The server's disk is full; nothing was lost."""


class DeadlineExceeded(QuintetError):
    """The call's deadline passed, on either side."""


class InternalError(QuintetError):
    """A fault of the server; its log has the details under `request_id`."""


class Unreachable(QuintetError):
    """No Quintet server answered at the address, or the connection broke."""


BY_REASON: dict[str, type[QuintetError]] = {
    "INVALID_REQUEST": InvalidRequest,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "REQUEST_ID_REUSED": RequestIdReused,
    "LEDGER_UNAVAILABLE": LedgerUnavailable,
    "QUOTA_EXCEEDED": QuotaExceeded,
    "BUDGET_EXHAUSTED": BudgetExhausted,
    "SERVER_OVERLOADED": ServerOverloaded,
    "SERVER_STOPPING": ServerStopping,
    "MESSAGE_TOO_LARGE": MessageTooLarge,
    "MODEL_LOADING": ModelLoading,
    "MODEL_NOT_FOUND": ModelNotFound,
    "MODEL_DOES_NOT_FIT": ModelDoesNotFit,
    "MODEL_UNAVAILABLE": ModelUnavailable,
    "MODEL_CHECK_FAILED": ModelCheckFailed,
    "MODEL_VERSION_NOT_FOUND": ModelVersionNotFound,
    "REGISTRY_FAILED": RegistryFailed,
    "UPSTREAM_FAILED": UpstreamFailed,
    "UPSTREAM_TIMEOUT": UpstreamTimeout,
    "COLLECTION_NOT_FOUND": CollectionNotFound,
    "COLLECTION_EXISTS": CollectionExists,
    "COLLECTION_BROKEN": CollectionBroken,
    "EMBEDDER_MISMATCH": EmbedderMismatch,
    "GENERATION_NOT_FOUND": GenerationNotFound,
    "GENERATION_NOT_REACHED": GenerationNotReached,
    "STORAGE_FULL": StorageFull,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "INTERNAL": InternalError,
}
# A status without our ErrorInfo was made by gRPC itself, or by a proxy on the way.
BY_CODE: dict[grpc.StatusCode, type[QuintetError]] = {
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def translate(error: grpc.RpcError, request_id: str) -> QuintetError:
    """The typed exception for a failed call that was sent with `request_id`."""
    call = cast(grpc.Call, error)  # what grpc and grpc.aio raise has these methods, though its type does not say so
    code, message = call.code(), call.details() or ""
    status = _rich_status(call)
    info = next((each for each in _details(status, error_details_pb2.ErrorInfo) if each.domain == DOMAIN), None)
    if info is None:
        return BY_CODE.get(code, QuintetError)(message, code=code, request_id=request_id)
    delays = [each.retry_delay.ToTimedelta().total_seconds() for each in _details(status, error_details_pb2.RetryInfo)]
    return BY_REASON.get(info.reason, QuintetError)(
        message,
        code=code,
        reason=info.reason,
        request_id=info.metadata.get("request_id", request_id),
        retry_after=delays[0] if delays else None,
        violations=[
            Violation(violation.field, violation.description)
            for bad_request in _details(status, error_details_pb2.BadRequest)
            for violation in bad_request.field_violations
        ],
    )


def invalid(violations: Sequence[Violation]) -> InvalidRequest:
    """For what is found to be wrong before anything is sent."""
    text = "; ".join(f"{field}: {description}" for field, description in violations)
    return InvalidRequest(text, code=grpc.StatusCode.INVALID_ARGUMENT, reason="INVALID_REQUEST", violations=violations)


def _rich_status(call: grpc.Call) -> status_pb2.Status:
    try:
        return rpc_status.from_call(call) or status_pb2.Status()
    except (ValueError, DecodeError):  # a proxy changed the status and left the details, so the status counts
        return status_pb2.Status()


def _details(status: status_pb2.Status, kind: type[M]) -> list[M]:
    found = []
    for detail in status.details:
        message = kind()
        if detail.Is(kind.DESCRIPTOR) and detail.Unpack(message):
            found.append(message)
    return found
