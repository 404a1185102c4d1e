"""The tenants' limits as the pipeline applies them, with the counters for metrics."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from server.domain.context import Context
from server.domain.errors import QuotaExceeded
from server.domain.histogram import Histogram
from server.domain.money import Cost
from server.rpc.service_spec import Estimate
from server.tenancy.limits.limit_set import Permit
from server.tenancy.limits.limiter import Limiter
from server.tenancy.tenants import Limits, Tenant

EnterLimits = Callable[[Context, Any], Awaitable[Permit | None]]
_DECISIONS = (0.00001, 0.000025, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5)  # seconds
_NO_COST = Cost()
_NO_LIMITS = Limits()


class TenantLimits:
    """`tenant` finds a tenant by its name; `estimates` maps the paths of the methods that cost to their estimates.

    `refused` counts calls by tenant and limit, `decisions` are seconds. Use it on the event loop only.
    """

    def __init__(
        self, limiter: Limiter, tenant: Callable[[str], Tenant | None], estimates: Mapping[str, Estimate]
    ) -> None:
        self.limiter = limiter
        self._tenant = tenant
        self._estimates = estimates
        self.refused: dict[tuple[str, str], int] = {}
        self.decisions = Histogram(_DECISIONS)

    def of(self, path: str) -> EnterLimits:
        """What admits the calls of "/quintet.v1.ChatService/Chat" to the limits, or raises a refusal.

        The permit it returns is to be settled when the call ends; None if there is nothing to settle.
        """
        _, full_name, method = path.split("/")
        service, estimate = full_name.rpartition(".")[2], self._estimates.get(path)

        async def enter(call: Context, request: Any) -> Permit | None:
            tenant = self._tenant(call.caller.tenant)
            if tenant is None or (tenant.limits == _NO_LIMITS and not tenant.service_limits):
                return None  # before the estimate, because counting tokens takes time
            cost = estimate(request) if estimate else _NO_COST
            begun = time.monotonic()
            try:
                permit = await self.limiter.enter(tenant, service, cost, seconds=call.deadline - begun)
            except QuotaExceeded as error:
                call.degraded = self.limiter.degraded
                for limit in {each.limit for each in error.excesses}:
                    self.refused[tenant.name, limit] = self.refused.get((tenant.name, limit), 0) + 1
                raise
            finally:
                self.decisions.add(time.monotonic() - begun)
            call.degraded = permit is not None and self.limiter.degraded
            if permit is not None and method.startswith("Watch"):
                # A watch is idle most of the time and has no end: it counts as a request, but not as a running call.
                permit.settle(_NO_COST)
                return None
            return permit

        return enter
