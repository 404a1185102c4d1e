"""What each method touches, as its row in the table says, and the check of it before the servicer runs.

A row without a touch stops the server when it starts. Checks run on the parsed request. What a method answers with
(`SEE`) has no check here: the servicer shows what `Caller.sees_model` and `Caller.may` allow.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from server.domain.access import Right
from server.domain.context import Context

Check = Callable[[Context, Any], None]  # of a call and its request; raises what the caller gets
Names = Callable[[Any], Iterable[str]]  # the models that serve a request
Owners = Callable[[], Mapping[str, str]]  # the recorded owners of all collections; it raises if they are not open


class Resource(StrEnum):
    MODEL = "model"
    COLLECTION = "collection"
    USAGE = "usage"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Touch:
    """A resource that a method touches, what it does to it, and the check of a request, if there is one."""

    resource: Resource
    right: Right
    check: Check | None = None


SEES_MODELS = Touch(Resource.MODEL, Right.SEE)
MANAGES_MODELS = Touch(Resource.MODEL, Right.MANAGE)
SEES_COLLECTIONS = Touch(Resource.COLLECTION, Right.SEE)
SEES_USAGE = Touch(Resource.USAGE, Right.SEE)
MANAGES_USAGE = Touch(Resource.USAGE, Right.MANAGE)
SEES_SERVER = Touch(Resource.SERVER, Right.SEE)


def uses(names: Names) -> Touch:
    """The models that a request is computed with must be in the tenant's allow-list, chosen by name or by default."""

    def check(call: Context, request: Any) -> None:
        if call.caller.models is not None:
            for name in names(request):
                call.caller.use_model(name)

    return Touch(Resource.MODEL, Right.USE, check)


def chosen(default: str) -> Names:
    """The model that a request names, or the default."""
    return lambda request: (request.model or default,)


def always(*models: str) -> Names:
    """The same models for every request."""
    return lambda request: models


def names_collection(right: Right, named: Callable[[Any], str], owners: Owners) -> Touch:
    """The collection that a request names; a later message of a stream need not name it again."""

    def check(call: Context, request: Any) -> None:
        call.right = right
        if call.caller.grants is not None and (name := named(request)):
            call.caller.require(right, name, owners())

    return Touch(Resource.COLLECTION, right, check)


def combined(touches: Iterable[Touch]) -> Check | None:
    """One check of all touches; None if there is nothing to check."""
    checks = tuple(touch.check for touch in touches if touch.check)
    if len(checks) < 2:
        return checks[0] if checks else None

    def check(call: Context, request: Any) -> None:
        for each in checks:
            each(call, request)

    return check
