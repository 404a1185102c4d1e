"""Limits of tenants around every servicer: admitted before it, settled after it with what it cost."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from server import calls
from server.stores.limits import Cost, Limiter, Permit
from server.stores.tenants import Tenant

Estimate = Callable[[Any], Cost]  # what a request costs at most


class TenantLimits:
    """`tenant` finds a tenant by its name; `estimates` are those of the methods that cost, by their paths."""

    def __init__(
        self, limiter: Limiter, tenant: Callable[[str], Tenant | None], estimates: Mapping[str, Estimate]
    ) -> None:
        self._limiter = limiter
        self._tenant = tenant
        self._estimates = estimates

    def around_unary(self, name: str, serve: Any) -> Any:
        """The method with its limits."""
        service, estimate = _service(name), self._estimates.get(name)

        async def limited(request: Any, context: Any) -> Any:
            call = calls.current()
            permit = await self._enter(call, service, estimate(request) if estimate else Cost())
            try:
                return await serve(request, context)
            finally:
                if permit is not None:
                    permit.settle(Cost(call.spent_tokens, call.spent_micros))

        return limited

    def around_stream(self, name: str, serve: Any) -> Any:
        """The same for streamed responses."""
        service, estimate = _service(name), self._estimates.get(name)

        async def limited(request: Any, context: Any) -> AsyncIterator[Any]:
            call = calls.current()
            permit = await self._enter(call, service, estimate(request) if estimate else Cost())
            try:
                async with aclosing(serve(request, context)) as responses:
                    async for response in responses:
                        yield response
            finally:
                if permit is not None:
                    permit.settle(Cost(call.spent_tokens, call.spent_micros))

        return limited

    async def _enter(self, call: calls.Call, service: str, cost: Cost) -> Permit | None:
        tenant = self._tenant(call.caller.tenant)
        if tenant is None:
            return None
        return await self._limiter.enter(tenant, service, cost, seconds=call.deadline - time.monotonic())


def _service(method: str) -> str:
    """The short name, ChatService, of /quintet.v1.ChatService/Chat."""
    return method.split("/")[1].rpartition(".")[2]
