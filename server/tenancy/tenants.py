"""Tenants as plain values: roles, allow-lists and limits. `tenants_file.py` reads them with pydantic."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field

from server.domain.money import micros

_Rate = Annotated[int, Field(strict=True, ge=1, le=10**12)]
_Tokens = Annotated[int, Field(strict=True, ge=0, le=10**12)]
_Micros = Annotated[int, BeforeValidator(micros)]


class Role(StrEnum):
    """What a tenant may do. No role includes another one."""

    CALL = "call"
    INGEST = "ingest"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper limits; None is unlimited. Money is in millionths of the price table's currency; days and months
    are in UTC.

    A burst is how much is admitted at once after a pause; None is the amount of a minute. The file has money as
    decimals in quotes.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    requests_per_minute: _Rate | None = None
    request_burst: _Rate | None = None
    tokens_per_minute: _Rate | None = None
    token_burst: _Rate | None = None
    concurrent_calls: _Rate | None = None
    tokens_per_day: _Tokens | None = None
    tokens_per_month: _Tokens | None = None
    micros_per_day: Annotated[_Micros | None, Field(validation_alias="money_per_day")] = None
    micros_per_month: Annotated[_Micros | None, Field(validation_alias="money_per_month")] = None


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
