"""Limits of tenants over time: rates, calls at once, budgets. In memory for one process, in Redis for several.

A decision is one step for all limits of a call: either all admit it and it is counted in all, or one refuses and
nothing is counted. What a call will cost is reserved before it and settled after it.
"""

from typing import Protocol

from server.domain.money import Cost
from server.tenancy.tenants import Tenant


class Permit(Protocol):
    """A call that was admitted. Settle it exactly once."""

    def settle(self, actual: Cost) -> None:
        """The call has ended and cost this. Never blocks and never raises; it may be written a moment later."""
        ...


class Limiter(Protocol):
    """Decides."""

    @property
    def degraded(self) -> bool:
        """Whether it cannot see what other processes admit, though it should."""
        ...

    async def enter(self, tenant: Tenant, service: str, estimate: Cost, *, seconds: float) -> Permit | None:
        """Admit a call that ends within `seconds`, or raise QuotaExceeded, BudgetExhausted or LedgerUnavailable.

        None if the tenant has no limits for this service ("ChatService"). Never takes longer than a fraction of a
        second.
        """
        ...

    async def close(self) -> None:
        """Write what was settled and is not yet written."""
        ...
