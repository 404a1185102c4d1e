"""How a refusal is told: every limit that the call would break, and when it is worth another try."""

from collections.abc import Sequence
from typing import NamedTuple

from server.domain.errors import BudgetExhausted, Excess, QuotaExceeded


class Broken(NamedTuple):
    """A limit that has no room for a call: its name in `Limits`, whose it is, and what it says.

    After `seconds` it may have room; infinity is never.
    """

    limit: str
    subject: str
    description: str
    seconds: float
    is_budget: bool = False


def refusal(broken: Sequence[Broken]) -> QuotaExceeded | BudgetExhausted:
    """The error; its metadata has the names of the limits. A budget among them makes it BudgetExhausted."""
    kind = BudgetExhausted if any(each.is_budget for each in broken) else QuotaExceeded
    error = kind(
        "over the limit of " + "; of ".join(f"{each.subject}: {each.description}" for each in broken),
        [Excess(each.subject, each.description) for each in broken],
        retry_after=max(each.seconds for each in broken),
    )
    error.metadata["limits"] = ",".join(dict.fromkeys(each.limit for each in broken))
    return error
