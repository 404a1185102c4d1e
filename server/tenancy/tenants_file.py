"""The tenants file: TOML, written by people and by `quintet tenants`. data/samples/tenants.toml explains every key.

Errors name the table and the key, or the line if the file is not TOML.
"""

import math
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from server.domain.access import EVERYONE, Grants, Quotas
from server.domain.reloading_file import BadFile, Contents, ReloadingFile
from server.tenancy import api_keys
from server.tenancy.api_keys import ApiKey
from server.tenancy.tenants import Limits, Role, Tenant

_MAX_PROBLEMS = 5
_LARGE_BYTES = 64 * 1024  # parsing takes about 20 ms


def _bursts_have_rates(limits: Limits) -> Limits:
    for burst, rate in (("request_burst", "requests_per_minute"), ("token_burst", "tokens_per_minute")):
        if getattr(limits, burst) is not None and getattr(limits, rate) is None:
            raise ValueError(f"{burst} needs {rate}")
    return limits


def _identity(text: object) -> str:
    kind, _, name = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind not in {"dns", "uri", "cn"} or not name:
        raise ValueError('must be "dns:NAME", "uri:URI" or "cn:NAME" as in the certificate')
    return f"dns:{name.lower()}" if kind == "dns" else f"{kind}:{name}"


def _one_tenant(name: str) -> str:
    if name == EVERYONE:
        raise ValueError(f'must be one tenant, not "{EVERYONE}"')
    return name


_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
_CollectionName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
_KeyId = Annotated[str, Field(pattern=f"^{api_keys.ID}$")]
_Count = Annotated[int, Field(ge=0, le=10**15)]
_Limits = Annotated[Limits, AfterValidator(_bursts_have_rates)]
_Identity = Annotated[str, BeforeValidator(_identity)]
_Role = Annotated[Role, Field(strict=False)]
_Names = Annotated[frozenset[str], Field(strict=False)]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Key(_Table):
    hash: Annotated[tuple[bytes, bytes], BeforeValidator(api_keys.parse_hash)]
    created: datetime | None = None  # for information
    expires: AwareDatetime | None = None


class _Quotas(_Table):
    collections: _Count | None = None
    documents: _Count | None = None
    bytes: _Count | None = None


class _Tenant(_Table):
    roles: Annotated[frozenset[_Role], Field(strict=False)] = frozenset({Role.CALL})
    services: _Names | None = None
    models: _Names | None = None
    certificates: list[_Identity] = []
    keys: dict[_KeyId, _Key] = {}
    limits: _Limits = Limits()
    service_limits: dict[str, _Limits] = {}
    quotas: _Quotas | None = None


class _Collection(_Table):
    owner: Annotated[str, AfterValidator(_one_tenant)] = ""
    read: _Names = frozenset()
    write: _Names = frozenset()


class _File(_Table):
    # At least one: a file that is being written may be empty for a moment, which must not lock out all tenants.
    tenants: Annotated[dict[_Name, _Tenant], Field(min_length=1)]
    collections: dict[_CollectionName, _Collection] = {}


@dataclass(frozen=True, slots=True)
class Directory:
    """The tenants by their names, by the ids of their API keys, and by certificate identities ("dns:a.example").

    `grants` are the entries of collections, by their names; `quotas` those of tenants that have some.
    """

    tenants: Mapping[str, Tenant]
    keys: Mapping[str, tuple[ApiKey, Tenant]]
    certificates: Mapping[str, Tenant]
    grants: Mapping[str, Grants]
    quotas: Mapping[str, Quotas]

    def unknown_tenants(self) -> Iterator[str]:
        """Grants to tenants that do not exist. They grant nothing, so that removing a tenant takes effect at once."""
        for name, entry in self.grants.items():
            for key, named in (("owner", {entry.owner} - {""}), ("read", entry.read), ("write", entry.write)):
                for tenant in sorted(named - {EVERYONE} - self.tenants.keys()):
                    yield f'collections.{name}.{key}: there is no tenant "{tenant}"'


class TenantsFile(ReloadingFile[Directory]):
    """The current tenants of a file. `services` are the short names that allow-lists and limits may use."""

    def __init__(self, path: Path, services: Collection[str]) -> None:
        """Read the file. Raises BadFile, without API keys that are in the wrong place."""
        self._is_serving = False  # at the start no call waits

        def make(contents: Contents) -> Directory:
            from server.tenancy.parsing_process import parse_apart  # it imports this module

            is_apart = self._is_serving and len(contents[0]) > _LARGE_BYTES
            try:
                return (parse_apart if is_apart else parse)(contents[0], services)
            except BadFile as error:
                # A misplaced key must not be logged.
                raise BadFile(f"{path}: {api_keys.without_keys(str(error))}") from None

        super().__init__("tenants", [path], make)
        self._is_serving = True

    @property
    def warnings(self) -> Sequence[str]:
        """What an operator should repair in the file; a part of it if there is much."""
        return [*super().warnings, *(f"{self._paths[0]}: {each}" for each in islice(self.latest.unknown_tenants(), 5))]

    def tenant(self, name: str) -> Tenant | None:
        """The current tenant of this name."""
        return self.latest.tenants.get(name)


def parse(content: bytes, services: Collection[str]) -> Directory:
    """The tenants in a file's content. Raises BadFile with the place of each error."""
    try:
        file = _File.model_validate(tomllib.loads(content.decode()))
    except UnicodeDecodeError as error:
        raise BadFile(f"not UTF-8 at byte {error.start}") from None
    except ValidationError as error:
        raise BadFile(_listed([(_place(each["loc"]), each["msg"]) for each in error.errors()])) from None
    except ValueError as error:  # not only TOMLDecodeError: tomllib lets through int's own for 5,000 digits
        raise BadFile(f"not TOML: {error}") from None
    except RecursionError:
        raise BadFile("nested too deeply") from None
    if problems := [*_unknown_services(file, services), *_shared(file)]:
        raise BadFile(_listed(problems))
    tenants = {
        name: Tenant(name, table.roles, table.services, table.models, table.limits, table.service_limits)
        for name, table in file.tenants.items()
    }
    return Directory(
        tenants,
        {
            id: (ApiKey(*key.hash, key.expires.timestamp() if key.expires else math.inf), tenants[name])
            for name, table in file.tenants.items()
            for id, key in table.keys.items()
        },
        {identity: tenants[name] for name, table in file.tenants.items() for identity in table.certificates},
        {name: Grants(entry.owner, entry.read, entry.write) for name, entry in file.collections.items()},
        {name: Quotas(**table.quotas.model_dump()) for name, table in file.tenants.items() if table.quotas},
    )


def _unknown_services(file: _File, services: Collection[str]) -> Iterator[tuple[str, str]]:
    for name, table in file.tenants.items():
        for key, named in (("services", table.services or ()), ("service_limits", table.service_limits)):
            for service in named:
                if service not in services:
                    yield f"tenants.{name}.{key}", f'no service "{service}"; there are {", ".join(sorted(services))}'


def _shared(file: _File) -> Iterator[tuple[str, str]]:
    """Keys and certificates must identify one tenant."""
    owners: dict[str, str] = {}
    for name, table in file.tenants.items():
        identities = [*((f"keys.{id}", id) for id in table.keys), *(("certificates", c) for c in table.certificates)]
        for place, identity in identities:
            if (owner := owners.setdefault(identity, name)) != name:
                yield f"tenants.{name}.{place}", f'"{identity}" belongs to tenants.{owner}'


def _place(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path if part != "[key]")


def _listed(problems: Sequence[tuple[str, str]]) -> str:
    texts = [f"{place}: {what.removeprefix('Value error, ')}" for place, what in problems[:_MAX_PROBLEMS]]
    more = len(problems) - len(texts)
    return "; ".join(texts) + (f"; and {more} more" if more else "")
