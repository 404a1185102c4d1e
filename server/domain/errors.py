"""The exceptions of the server. `rpc/status.py` maps them to gRPC status codes.

Messages reach the caller: they name fields, models and commands, never secrets and never texts of other libraries'
exceptions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple


class Violation(NamedTuple):
    """A field that breaks a limit: its path in the request ("houses[0].neighborhood") and what the limit is."""

    field: str
    description: str


class QuintetError(Exception):
    """Base of all. `reason` is a name of quintet.v1.ErrorReason without its prefix; subclasses inherit it."""

    reason: ClassVar[str] = "INTERNAL"

    def __init_subclass__(cls, *, reason: str = "", **options: object) -> None:
        super().__init_subclass__(**options)
        if reason:
            cls.reason = reason

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})


class InvalidRequest(QuintetError, reason="INVALID_REQUEST"):
    """The request breaks limits; there is at least one violation."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{field}: {text}" if field else text for field, text in violations[:5]))
        self.violations = tuple(violations)


class PromptTooLong(InvalidRequest):
    """The conversation leaves no room for an answer in the model's context. `exact` if its tokenizer counted; None is a
    number that its endpoint did not report.
    """

    def __init__(self, tokens: int | None, context_tokens: int | None, *, exact: bool = True) -> None:
        about = "" if exact else "about "
        context = "" if context_tokens is None else f" of {context_tokens} tokens"
        text = f"is too long for the model's context{context}"
        if tokens is not None and context_tokens is not None:
            text = f"has {about}{tokens} tokens; the model's context is {context_tokens}"
        super().__init__([Violation("messages", text)])
        self.context_tokens = context_tokens or 0


class OptionRefused(InvalidRequest):
    """The model does not take an option that the caller chose; another one of the route may."""

    def __init__(self, field: str) -> None:
        super().__init__([Violation(field, "the language model's endpoint does not accept this value")])


class MessageTooLarge(QuintetError, reason="MESSAGE_TOO_LARGE"):
    """The request is over the size limit."""


class Unauthenticated(QuintetError, reason="UNAUTHENTICATED"):
    """The API key or client certificate is missing, unknown, expired or revoked; the message does not say which."""


class PermissionDenied(QuintetError, reason="PERMISSION_DENIED"):
    """The tenant's roles or allow-lists do not permit the call."""


class RequestIdReused(QuintetError, reason="REQUEST_ID_REUSED"):
    """The tenant sent this request id with another request, or its call still runs, or it came too often."""


class NotFound(QuintetError):
    """The request names something that does not exist."""


class ModelNotFound(NotFound, reason="MODEL_NOT_FOUND"):
    def __init__(self, name: str, known: Sequence[str]) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f'no such model: "{name}"; known: {names}', metadata={"model": name, "known": names})


class ModelVersionNotFound(NotFound, reason="MODEL_VERSION_NOT_FOUND"):
    def __init__(self, model: str, version: str, known: Sequence[str]) -> None:
        versions = ", ".join(known) or "none"
        super().__init__(
            f'model "{model}" has no version "{version}"; known: {versions}',
            metadata={"model": model, "version": version, "known": versions},
        )


class CollectionNotFound(NotFound, reason="COLLECTION_NOT_FOUND"):
    def __init__(self, name: str, known: Sequence[str]) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f'no such collection: "{name}"; known: {names}', metadata={"collection": name, "known": names})


class CollectionNotGranted(NotFound, reason="COLLECTION_NOT_FOUND"):
    """The tenant has no collection of this name to `use` ("read"); whether there is one is not told.

    `known` are those that it has. `option` of `quintet tenants grant` would grant access.
    """

    def __init__(self, tenant: str, name: str, use: str, option: str, known: Sequence[str]) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(
            f'tenant "{tenant}" has no collection "{name}" to {use} '
            f"(an operator grants access: quintet tenants grant {name} {option} {tenant}); known: {names}",
            metadata={"collection": name, "known": names},
        )


class GenerationNotFound(NotFound, reason="GENERATION_NOT_FOUND"):
    def __init__(self, collection: str, number: int, kept: Sequence[int]) -> None:
        numbers = ", ".join(map(str, kept))
        super().__init__(
            f'collection "{collection}" keeps no generation {number}; it keeps: {numbers}',
            metadata={"collection": collection, "kept": numbers},
        )


class CollectionExists(QuintetError, reason="COLLECTION_EXISTS"):
    def __init__(self, name: str) -> None:
        super().__init__(f'the collection "{name}" exists', metadata={"collection": name})


class Unavailable(QuintetError):
    """It may work after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelLoading(Unavailable, reason="MODEL_LOADING"):
    """The model is being read and checked."""


class GenerationNotReached(Unavailable, reason="GENERATION_NOT_REACHED"):
    """The collection has not reached the requested generation."""


class ServerStopping(Unavailable, reason="SERVER_STOPPING"):
    """The server takes no new work."""


class UpstreamFailed(Unavailable, reason="UPSTREAM_FAILED"):
    """The language model's endpoint failed, refused or broke off."""


class UpstreamRefused(UpstreamFailed):
    """The endpoint refuses every request, because of the server's configuration, or its circuit is open."""


class UpstreamRejected(UpstreamFailed):
    """The endpoint rejects this request, and would again, for a reason that is not the caller's fault."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after=math.inf)


class UpstreamBrokeOff(UpstreamFailed):
    """The endpoint had the request and failed before the end of its answer: it may have computed what costs."""


class UpstreamQuotaExhausted(QuintetError, reason="UPSTREAM_QUOTA_EXHAUSTED"):
    """The server's account at the provider has no quota or credit left; waiting does not help."""


class RegistryFailed(Unavailable, reason="REGISTRY_FAILED"):
    """The model registry cannot be reached, refused, or delivered something else than it announced."""


class ServerOverloaded(Unavailable, reason="SERVER_OVERLOADED"):
    """A queue is full."""


class UpstreamFull(ServerOverloaded):
    """The language model's endpoint is overloaded; `retry_after` is the endpoint's own, if it sends one."""


class Excess(NamedTuple):
    """A limit without room for a call: whose it is ("tenant acme"), what it says ("60 requests a minute"), and its name
    in the tenants file. After `retry_after` seconds it may have room; infinity means never.
    """

    subject: str
    description: str
    limit: str
    retry_after: float
    is_budget: bool = False


class QuotaExceeded(Unavailable, reason="QUOTA_EXCEEDED"):
    """The tenant's rate or number of calls at once has no room; this call was not counted. `retry_after` is infinity if
    the call alone is over a burst.
    """

    def __init__(self, excesses: Sequence[Excess]) -> None:
        over = "; of ".join(f"{each.subject}: {each.description}" for each in excesses)
        super().__init__(f"over the limit of {over}", retry_after=max(each.retry_after for each in excesses))
        self.metadata = {"limits": ",".join(dict.fromkeys(each.limit for each in excesses))}
        self.excesses = tuple(excesses)


class BudgetExhausted(QuotaExceeded, reason="BUDGET_EXHAUSTED"):
    """A budget of the day or month has no room for the call before `retry_after` seconds; infinity means never."""


class LedgerUnavailable(Unavailable, reason="LEDGER_UNAVAILABLE"):
    """The ledger cannot be read or written, so calls that cost are not begun."""


class ModelUnavailable(QuintetError, reason="MODEL_UNAVAILABLE"):
    """The artefact is missing, truncated or does not match its manifest; the message says how to make it."""


class ModelCheckFailed(QuintetError, reason="MODEL_CHECK_FAILED"):
    """The model's outputs for its golden inputs differ from those of its training by more than the manifest allows."""


class ModelDoesNotFit(QuintetError, reason="MODEL_DOES_NOT_FIT"):
    """The memory limit has no room for the model, and no model can be evicted. Numbers are bytes."""

    def __init__(self, model: str, needed: int, limit: int, in_use: int) -> None:
        super().__init__(
            f'model "{model}" needs {needed} bytes; of the memory limit of {limit}, {in_use} are in use',
            metadata={"model": model, "needed": str(needed), "budget": str(limit), "in_use": str(in_use)},
        )


class CollectionUnavailable(QuintetError):
    """The collection cannot be used as it is; the message says how to repair it."""


class CollectionBroken(CollectionUnavailable, reason="COLLECTION_BROKEN"):
    """No generation of the collection can be read."""


class CollectionTooNew(CollectionBroken):
    """A newer version of Quintet wrote the collection."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f'a newer version of Quintet wrote collection "{name}": {what}. Update this server')


class CollectionUnreadable(Unavailable, reason="COLLECTION_UNREADABLE"):
    """The operating system refuses to read or write the collection's files. The server tries again by itself."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f'the files of collection "{name}" cannot be read or written: {why}', retry_after=5.0)


class EmbedderMismatch(CollectionUnavailable, reason="EMBEDDER_MISMATCH"):
    """Another embedder made the collection, and vectors of two embedders cannot be compared."""


class StorageFull(QuintetError, reason="STORAGE_FULL"):
    """The disk has no room for the write; the data from before is intact."""


class UpstreamTimeout(QuintetError, reason="UPSTREAM_TIMEOUT"):
    """The language model's endpoint did not answer in time."""


class DeadlineExceeded(QuintetError, reason="DEADLINE_EXCEEDED"):
    """The call's deadline passed or is too short, or the request took too long to arrive."""
