"""The exceptions: one class for each reason of quintet.v1.ErrorReason, all of them QuintetErrors."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "quintet.v1"
M = TypeVar("M", bound=Message)
BY_REASON: dict[str, type["QuintetError"]] = {}  # filled by the classes below


class Violation(NamedTuple):
    """One broken limit: the field's path in the request ("houses[0].neighborhood") and what the limit requires."""

    field: str
    description: str


class QuintetError(Exception):
    """A call failed.

    `code` is the gRPC status. `reason` is a name of ErrorReason without its prefix; empty if the error does not come
    from a Quintet server. `request_id` identifies the call in the server's log; empty if nothing was sent.
    `retry_after` is in seconds; None if the server gave no delay. `violations` are the broken limits.
    """

    def __init_subclass__(cls, *, reason: str = "") -> None:
        if reason:
            BY_REASON[reason] = cls

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


class InvalidRequest(QuintetError, reason="INVALID_REQUEST"):
    """The request breaks limits of the contract; `violations` lists them."""


class Unauthenticated(QuintetError, reason="UNAUTHENTICATED"):
    """No API key or client certificate was sent, or one that is unknown or has expired."""


class PermissionDenied(QuintetError, reason="PERMISSION_DENIED"):
    """The tenant may not use this method, service or model."""


class RequestIdReused(QuintetError, reason="REQUEST_ID_REUSED"):
    """The request id was used for another call within the last day; send a new one."""


class QuotaExceeded(QuintetError, reason="QUOTA_EXCEEDED"):
    """The tenant's limit of rate or concurrent calls is reached; retry after `retry_after`. Without one, it is a quota
    of what is stored: delete something first.
    """


class BudgetExhausted(QuintetError, reason="BUDGET_EXHAUSTED"):
    """The tenant's budget of the day or month is spent; the next one starts after `retry_after`."""


class LedgerUnavailable(QuintetError, reason="LEDGER_UNAVAILABLE"):
    """The server could not record the call's cost and did not start it; retry after `retry_after`."""


class ServerOverloaded(QuintetError, reason="SERVER_OVERLOADED"):
    """The server is at its limit; retry after `retry_after`."""


class ServerStopping(QuintetError, reason="SERVER_STOPPING"):
    """The server is shutting down; retry on another one."""


class MessageTooLarge(QuintetError, reason="MESSAGE_TOO_LARGE"):
    """The request exceeds the server's size limit."""


class ModelLoading(QuintetError, reason="MODEL_LOADING"):
    """The model is being loaded; retry after `retry_after`."""


class ModelNotFound(QuintetError, reason="MODEL_NOT_FOUND"):
    """No model has this name; the message lists the existing names."""


class ModelDoesNotFit(QuintetError, reason="MODEL_DOES_NOT_FIT"):
    """The model needs more memory than the server has left for models."""


class ModelUnavailable(QuintetError, reason="MODEL_UNAVAILABLE"):
    """The artefact is missing or broken; an operator must act."""


class ModelCheckFailed(QuintetError, reason="MODEL_CHECK_FAILED"):
    """The version does not reproduce its golden outputs; the server keeps the version that it served."""


class ModelVersionNotFound(QuintetError, reason="MODEL_VERSION_NOT_FOUND"):
    """The model has no such version or alias; the message lists the existing ones."""


class RegistryFailed(QuintetError, reason="REGISTRY_FAILED"):
    """The model registry is unreachable or refused the request; retry after `retry_after`."""


class UpstreamFailed(QuintetError, reason="UPSTREAM_FAILED"):
    """The language model's endpoint failed or refused."""


class UpstreamTimeout(QuintetError, reason="UPSTREAM_TIMEOUT"):
    """The language model's endpoint did not answer in time."""


class UpstreamQuotaExhausted(QuintetError, reason="UPSTREAM_QUOTA_EXHAUSTED"):
    """The quota or the credit of the server's account at the provider is spent; its operator must act."""


class CollectionNotFound(QuintetError, reason="COLLECTION_NOT_FOUND"):
    """No collection has this name, or the tenant may not use it; the message lists those that it may use."""


class CollectionExists(QuintetError, reason="COLLECTION_EXISTS"):
    """A collection of this name exists already, perhaps of another tenant."""


class CollectionBroken(QuintetError, reason="COLLECTION_BROKEN"):
    """No generation of the collection can be read; the message says what to do."""


class CollectionUnreadable(QuintetError, reason="COLLECTION_UNREADABLE"):
    """The operating system of the server refuses to read or write the collection's files."""


class EmbedderMismatch(QuintetError, reason="EMBEDDER_MISMATCH"):
    """The collection was made by another embedder; `reindex` rebuilds it."""


class GenerationNotFound(QuintetError, reason="GENERATION_NOT_FOUND"):
    """The generation is not kept; the message lists those that are."""


class GenerationNotReached(QuintetError, reason="GENERATION_NOT_REACHED"):
    """The collection has not reached `min_generation`; retry after `retry_after`."""


class StorageFull(QuintetError, reason="STORAGE_FULL"):
    """The server's disk is full; no stored data was lost."""


class DeadlineExceeded(QuintetError, reason="DEADLINE_EXCEEDED"):
    """The call's deadline passed, at the client or at the server."""


class InternalError(QuintetError, reason="INTERNAL"):
    """A fault of the server; its log has the details under `request_id`."""


class Unreachable(QuintetError):
    """No Quintet server answered at the address, or the connection broke."""


# A status without Quintet's ErrorInfo was made by gRPC itself or by a proxy.
BY_CODE: dict[grpc.StatusCode, type[QuintetError]] = {
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def translate(error: grpc.RpcError, request_id: str) -> QuintetError:
    """The typed exception for a failed call that was sent with `request_id`."""
    call = cast(grpc.Call, error)  # errors of grpc and grpc.aio have these methods; the type does not declare them
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
    """The error for a request that is found to be invalid before it is sent."""
    violations = [Violation(*map(_printable, violation)) for violation in violations]
    text = "; ".join(f"{field}: {description}" for field, description in violations)
    return InvalidRequest(text, code=grpc.StatusCode.INVALID_ARGUMENT, reason="INVALID_REQUEST", violations=violations)


def _printable(text: str) -> str:
    """The text with half surrogate pairs escaped: no stream can be written with them."""
    return text.encode(errors="backslashreplace").decode()


def _rich_status(call: grpc.Call) -> status_pb2.Status:
    try:
        return rpc_status.from_call(call) or status_pb2.Status()
    except (ValueError, DecodeError):  # a proxy changed the status but not the details: trust the status
        return status_pb2.Status()


def _details(status: status_pb2.Status, kind: type[M]) -> list[M]:
    found = []
    for detail in status.details:
        message = kind()
        if detail.Is(kind.DESCRIPTOR) and detail.Unpack(message):
            found.append(message)
    return found
