"""Limits of tenants around every servicer: admitted before it, settled after it with what it cost."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from server.domain.context import Context, current
from server.domain.errors import BudgetExhausted, QuotaExceeded
from server.domain.histogram import Histogram
from server.domain.money import Cost
from server.rpc.service_spec import Estimate
from server.tenancy.limits.limiter import Limiter, Permit
from server.tenancy.tenants import Limits, Tenant

_DECISIONS = (0.00001, 0.000025, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5)  # seconds
_NOTHING = Cost()
_NO_LIMITS = Limits()


class TenantLimits:
    """`tenant` finds a tenant by its name; `estimates` are those of the methods that cost, by their paths.

    Counts for metrics: `refused` calls by tenant and limit, and `decisions` in seconds. Used on the event loop alone.
    """

    def __init__(
        self, limiter: Limiter, tenant: Callable[[str], Tenant | None], estimates: Mapping[str, Estimate]
    ) -> None:
        self._limiter = limiter
        self._tenant = tenant
        self._estimates = estimates
        self.refused: dict[tuple[str, str], int] = {}
        self.decisions = Histogram(_DECISIONS)

    @property
    def degraded(self) -> bool:
        """Whether this server decides alone, though others are there."""
        return self._limiter.degraded

    def around_unary(self, name: str, serve: Any) -> Any:
        """The method with its limits."""
        service, estimate = _service(name), self._estimates.get(name)

        async def limited(request: Any, context: Any) -> Any:
            call = current()
            permit = await self._enter(call, service, request, estimate)
            if permit is None:
                return await serve(request, context)
            try:
                return await serve(request, context)
            finally:
                permit.settle(Cost(call.spent_tokens, call.spent_micros))

        return limited

    def around_stream(self, name: str, serve: Any) -> Any:
        """The same for streamed responses. A watch lasts as long as its caller likes and does nothing most of the time:
        it counts as a request, and not among the calls at once.
        """
        service, estimate = _service(name), self._estimates.get(name)
        is_watch = name.rpartition("/")[2].startswith("Watch")

        async def limited(request: Any, context: Any) -> AsyncIterator[Any]:
            call = current()
            permit = await self._enter(call, service, request, estimate)
            if permit is not None and is_watch:
                permit.settle(_NOTHING)
                permit = None
            try:
                async with aclosing(serve(request, context)) as responses:
                    async for response in responses:
                        yield response
            finally:
                if permit is not None:
                    permit.settle(Cost(call.spent_tokens, call.spent_micros))

        return limited

    async def _enter(self, call: Context, service: str, request: Any, estimate: Estimate | None) -> Permit | None:
        tenant = self._tenant(call.caller.tenant)
        if tenant is None or (tenant.limits == _NO_LIMITS and not tenant.service_limits):
            return None  # before the request is looked at: counting its tokens takes time
        cost = estimate(request) if estimate else _NOTHING
        begun = time.monotonic()
        try:
            permit = await self._limiter.enter(tenant, service, cost, seconds=call.deadline - begun)
        except (QuotaExceeded, BudgetExhausted) as error:
            call.degraded = self._limiter.degraded
            for limit in error.metadata["limits"].split(","):
                self.refused[tenant.name, limit] = self.refused.get((tenant.name, limit), 0) + 1
            raise
        finally:
            self.decisions.add(time.monotonic() - begun)
        call.degraded = permit is not None and self._limiter.degraded
        return permit


def _service(method: str) -> str:
    """The short name, ChatService, of /quintet.v1.ChatService/Chat."""
    return method.split("/")[1].rpartition(".")[2]
