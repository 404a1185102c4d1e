"""What each method touches, as its row in the table says, and the check of it before the servicer runs.

A row without a touch stops the server when it starts. What a method answers with (`SEE`) has no check here: the
servicer shows what `Caller.sees_model` and `Caller.may` allow.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from server.domain.access import Right
from server.domain.context import Context, current
from server.domain.errors import NotFound

# A check of a call and its request; it raises what the caller gets. A check that may wait for the disk runs after the
# tenant's limits, so that absent and forbidden cost the caller the same.
Check = Callable[[Context, Any], None]
SlowCheck = Callable[[Context, Any], Awaitable[None]]
Serve = Callable[[Any, Any], Any]
Names = Callable[[Any], Iterable[str]]  # the models that serve a request
Owners = Callable[[], Mapping[str, str]]  # the recorded owners of all collections
LookFor = Callable[[str], Awaitable[None]]  # a collection of this name on disk, where another server may have made it


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
    slow_check: SlowCheck | None = None


SEES_MODELS = Touch(Resource.MODEL, Right.SEE)
MANAGES_MODELS = Touch(Resource.MODEL, Right.MANAGE)
SEES_COLLECTIONS = Touch(Resource.COLLECTION, Right.SEE)
SEES_USAGE = Touch(Resource.USAGE, Right.SEE)
MANAGES_USAGE = Touch(Resource.USAGE, Right.MANAGE)
SEES_SERVER = Touch(Resource.SERVER, Right.SEE)


def uses(*models: str) -> Touch:
    """The same models serve every request; they must be in the tenant's allow-list."""
    return uses_some(lambda request: models)


def uses_some(names: Names) -> Touch:
    """The models that serve a request."""

    def check(call: Context, request: Any) -> None:
        if call.caller.models is not None:
            for name in names(request):
                call.caller.use_model(name)

    return Touch(Resource.MODEL, Right.USE, check)


def uses_chosen(default: str) -> Touch:
    """The model that a request names, or the default, whose name a refusal does not tell."""

    def check(call: Context, request: Any) -> None:
        if request.model:
            call.caller.use_model(request.model)
        else:
            call.caller.use_model(default, "the default model")

    return Touch(Resource.MODEL, Right.USE, check)


def uses_default(model: str) -> Touch:
    """The model that serves every request, and whose name a refusal does not tell."""
    return Touch(Resource.MODEL, Right.USE, lambda call, request: call.caller.use_model(model, "the default model"))


def names_collection(right: Right, named: Callable[[Any], str], owners: Owners, look_for: LookFor) -> Touch:
    """The collection that a request names; a later message of a stream need not name it again."""

    async def check(call: Context, request: Any) -> None:
        call.right = right
        if call.caller.grants is not None and (name := named(request)):
            try:
                call.caller.require(right, name, owners())
            except NotFound:
                await look_for(name)  # absent and forbidden take about equally long
                call.caller.require(right, name, owners())

    return Touch(Resource.COLLECTION, right, slow_check=check)


def check_first(check: SlowCheck, serve: Serve, *, request_streaming: bool, response_streaming: bool) -> Serve:
    """A servicer's method that checks its request first, or every message of a stream of them."""

    async def each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            await check(current(), request)
            yield request

    async def unary(request: Any, context: Any) -> Any:
        if request_streaming:
            return await serve(each(request), context)
        await check(current(), request)
        return await serve(request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        await check(current(), request)
        async with aclosing(serve(request, context)) as responses:
            async for response in responses:
                yield response

    return stream if response_streaming else unary
