"""Tenants as plain values: roles, allow-lists and limits. `tenants_file.py` reads them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What a tenant may do. No role includes another one."""

    CALL = "call"
    INGEST = "ingest"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper limits; None is unlimited. Money is in millionths of the price table's currency; days and months
    are in UTC.

    A burst is how much is admitted at once after a pause; None is the amount of a minute.
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

    `limits` apply to all services together, `service_limits` also to each one.
    """

    name: str
    roles: frozenset[Role]
    services: frozenset[str] | None = None
    models: frozenset[str] | None = None
    limits: Limits = Limits()
    service_limits: Mapping[str, Limits] = field(default_factory=dict)
