"""Who may call and how much: tenants as plain values. `tenants_file.py` reads them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What a tenant may do. Each stands for itself: an admin who also calls has both."""

    CALL = "call"
    INGEST = "ingest"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper limits; None is none. Money is in millionths of the price table's currency, days and months are UTC's.

    A burst is how much may come at once after a pause; unset, it is what comes in a minute.
    """

    requests_per_minute: int | None = None
    request_burst: int | None = None
    tokens_per_minute: int | None = None
    token_burst: int | None = None
    concurrent_calls: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    micros_per_day: int | None = None
    micros_per_month: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant. Services are short names ("ChatService"); None allows all services or models.

    `limits` hold over all services together, `service_limits` for each besides.
    """

    name: str
    roles: frozenset[Role]
    services: frozenset[str] | None = None
    models: frozenset[str] | None = None
    limits: Limits = Limits()
    service_limits: Mapping[str, Limits] = field(default_factory=dict)
