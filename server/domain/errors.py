"""What can go wrong, in the words of the domain. No transport is known here.

    QuintetError
    ├── InvalidRequest          the caller's fault; carries field violations
    │   └── PromptTooLong       no room in the model's context; another model may have it
    ├── MessageTooLarge
    ├── Unauthenticated         nobody knows the caller
    ├── PermissionDenied        the caller is known and may not
    ├── RequestIdReused         the request id is another call's
    ├── BudgetExhausted         the tenant's budget of the day or month is spent
    ├── NotFound
    │   ├── ModelNotFound
    │   ├── ModelVersionNotFound
    │   ├── CollectionNotFound
    │   └── GenerationNotFound
    ├── CollectionExists
    ├── Unavailable             worth another try; carries a delay
    │   ├── ModelLoading
    │   ├── GenerationNotReached
    │   ├── ServerStopping
    │   ├── ServerOverloaded
    │   │   └── UpstreamFull    the language model's endpoint has too much to do, and says until when
    │   ├── QuotaExceeded       the tenant's rate is spent, or it has too many calls at once
    │   ├── LedgerUnavailable   what a call costs cannot be written down, so it is not begun
    │   ├── RegistryFailed
    │   └── UpstreamFailed
    │       ├── UpstreamRefused   no call would succeed there: it refuses the server, or is left alone for a while
    │       └── UpstreamRejected  this call would not succeed there
    ├── ModelUnavailable        the artefact is missing or broken; an operator must act
    ├── ModelCheckFailed        the artefact is whole and answers otherwise than when it was made
    ├── ModelDoesNotFit         the memory budget has no room for it
    ├── CollectionUnavailable   the same for a collection
    │   ├── CollectionBroken
    │   └── EmbedderMismatch
    ├── StorageFull             the disk is full; an operator must act
    ├── UpstreamTimeout
    └── DeadlineExceeded

`rpc/status.py` holds the one table from these classes to gRPC status codes. Messages reach the
caller: they name fields, models and commands, never values of secrets and never the text of foreign exceptions.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple


class Violation(NamedTuple):
    """One broken limit: the field's path in the request ("houses[0].neighborhood") and what it asks for."""

    field: str
    description: str


class QuintetError(Exception):
    """Base of all. `reason` is a name of quintet.v1.ErrorReason without its prefix."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})


class InvalidRequest(QuintetError):
    """The request breaks limits; `violations` says which, one at least."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{field}: {text}" if field else text for field, text in violations[:5]))
        self.violations = tuple(violations)


class PromptTooLong(InvalidRequest):
    """The conversation leaves no room for an answer in the model's context. `exact`: the model itself counts so."""

    def __init__(self, tokens: int, context_tokens: int, *, exact: bool = True) -> None:
        about = "" if exact else "about "
        super().__init__(
            [Violation("messages", f"has {about}{tokens} tokens; the model's context is {context_tokens}")]
        )
        self.context_tokens = context_tokens


class MessageTooLarge(QuintetError):
    """The request is over the size limit."""

    reason = "MESSAGE_TOO_LARGE"


class Unauthenticated(QuintetError):
    """No API key and no client certificate, or one that is not known, expired or revoked: the message does not tell."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(QuintetError):
    """The tenant's roles or allow-lists do not cover the call."""

    reason = "PERMISSION_DENIED"


class RequestIdReused(QuintetError):
    """The tenant sent this request id with another request, its call still runs, or it came too often."""

    reason = "REQUEST_ID_REUSED"


class Excess(NamedTuple):
    """A limit without room for a call: whose it is ("tenant acme"), what it says ("60 requests a minute"), and its name
    in the tenants file. After `retry_after` seconds it may have room; infinity means never.
    """

    subject: str
    description: str
    limit: str
    retry_after: float
    is_budget: bool = False


class BudgetExhausted(QuintetError):
    """A budget of the day or month has no room for the call until `retry_after`; infinity if it never has."""

    reason = "BUDGET_EXHAUSTED"

    def __init__(self, excesses: Sequence[Excess]) -> None:
        super().__init__(_over(excesses), metadata=_limits(excesses))
        self.excesses = tuple(excesses)
        self.retry_after = max(each.retry_after for each in excesses)


class NotFound(QuintetError):
    """Something that was named does not exist."""


class ModelNotFound(NotFound):
    """No model has this name."""

    reason = "MODEL_NOT_FOUND"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f'no such model: "{name}"; known: {names}', metadata={"model": name, "known": names})


class ModelVersionNotFound(NotFound):
    """The model has no such version, and no alias of that name."""

    reason = "MODEL_VERSION_NOT_FOUND"

    def __init__(self, model: str, version: str, known: Sequence[str]) -> None:
        versions = ", ".join(known) or "none"
        super().__init__(
            f'model "{model}" has no version "{version}"; known: {versions}',
            metadata={"model": model, "version": version, "known": versions},
        )


class CollectionNotFound(NotFound):
    """No collection has this name."""

    reason = "COLLECTION_NOT_FOUND"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f'no such collection: "{name}"; known: {names}', metadata={"collection": name, "known": names})


class GenerationNotFound(NotFound):
    """The generation is not kept."""

    reason = "GENERATION_NOT_FOUND"

    def __init__(self, collection: str, number: int, kept: Sequence[int]) -> None:
        numbers = ", ".join(map(str, kept))
        super().__init__(
            f'collection "{collection}" keeps no generation {number}; it keeps: {numbers}',
            metadata={"collection": collection, "kept": numbers},
        )


class CollectionExists(QuintetError):
    """There is a collection of this name."""

    reason = "COLLECTION_EXISTS"

    def __init__(self, name: str) -> None:
        super().__init__(f'there is a collection "{name}" already', metadata={"collection": name})


class Unavailable(QuintetError):
    """It does not work now and may work after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelLoading(Unavailable):
    """The model is being read and checked."""

    reason = "MODEL_LOADING"


class GenerationNotReached(Unavailable):
    """The collection has not come to the generation that was asked for."""

    reason = "GENERATION_NOT_REACHED"


class ServerStopping(Unavailable):
    """The server takes no new work."""

    reason = "SERVER_STOPPING"


class UpstreamFailed(Unavailable):
    """The language model's endpoint failed, refused or broke off."""

    reason = "UPSTREAM_FAILED"


class UpstreamRefused(UpstreamFailed):
    """The endpoint refuses the server, whose configuration is at fault, or is not asked because it failed often."""


class UpstreamRejected(UpstreamFailed):
    """The endpoint rejects the request for a reason that is none of the caller's; it would do so again."""


class RegistryFailed(Unavailable):
    """The model registry cannot be reached, refused, or gave something else than it promised."""

    reason = "REGISTRY_FAILED"


class ServerOverloaded(Unavailable):
    """A queue is full."""

    reason = "SERVER_OVERLOADED"


class UpstreamFull(ServerOverloaded):
    """The language model's endpoint takes no more for now; `retry_after` is what it says itself, if it does."""


class QuotaExceeded(Unavailable):
    """The tenant's rate, or its number of calls at once, has no room; nothing was counted for this call.

    `retry_after` is infinity if the call alone is over a burst.
    """

    reason = "QUOTA_EXCEEDED"

    def __init__(self, excesses: Sequence[Excess]) -> None:
        super().__init__(_over(excesses), retry_after=max(each.retry_after for each in excesses))
        self.metadata = _limits(excesses)
        self.excesses = tuple(excesses)


def _over(excesses: Sequence[Excess]) -> str:
    return "over the limit of " + "; of ".join(f"{each.subject}: {each.description}" for each in excesses)


def _limits(excesses: Sequence[Excess]) -> dict[str, str]:
    return {"limits": ",".join(dict.fromkeys(each.limit for each in excesses))}


class LedgerUnavailable(Unavailable):
    """The ledger cannot be written to, so nothing that costs is begun."""

    reason = "LEDGER_UNAVAILABLE"


class ModelUnavailable(QuintetError):
    """The artefact is missing, truncated or does not match its manifest; the message says how to make it."""

    reason = "MODEL_UNAVAILABLE"


class ModelCheckFailed(QuintetError):
    """The golden inputs give other outputs than when the model was made, by more than its manifest allows."""

    reason = "MODEL_CHECK_FAILED"


class ModelDoesNotFit(QuintetError):
    """The memory budget has no room for the model, and nothing can be evicted for it. Numbers are bytes."""

    reason = "MODEL_DOES_NOT_FIT"

    def __init__(self, model: str, needed: int, budget: int, in_use: int) -> None:
        super().__init__(
            f'model "{model}" needs {needed} bytes; of the budget of {budget}, {in_use} are in use and cannot be freed',
            metadata={"model": model, "needed": str(needed), "budget": str(budget), "in_use": str(in_use)},
        )


class CollectionUnavailable(QuintetError):
    """The collection cannot be used as it is; the message says how to mend it."""


class CollectionBroken(CollectionUnavailable):
    """No generation of the collection is whole."""

    reason = "COLLECTION_BROKEN"


class EmbedderMismatch(CollectionUnavailable):
    """Another embedder made the collection, and vectors of two embedders cannot be compared."""

    reason = "EMBEDDER_MISMATCH"


class StorageFull(QuintetError):
    """The disk has no room for the write; what was there before is still there."""

    reason = "STORAGE_FULL"


class UpstreamTimeout(QuintetError):
    """The language model's endpoint did not answer in time."""

    reason = "UPSTREAM_TIMEOUT"


class DeadlineExceeded(QuintetError):
    """The call's deadline passed before its work was started."""

    reason = "DEADLINE_EXCEEDED"
