"""Who may see and do what with models and collections: pure rules. `rpc/access.py` applies them to calls.

Absent and forbidden are the same answer, with the names that the caller may see.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import NamedTuple

from server.domain.errors import (
    CollectionExists,
    CollectionNotFound,
    CollectionNotGranted,
    Excess,
    NotFound,
    PermissionDenied,
)

EVERYONE = "*"  # in place of a tenant's name in a grant


class Right(StrEnum):
    """What a method does to a resource."""

    USE = "use"  # compute with a model
    SEE = "see"  # answer with what the caller may see, and nothing of the rest
    MANAGE = "manage"  # see and change everything, which needs the role admin
    READ = "read"  # search a collection, list what it has
    WRITE = "write"  # change a collection that exists
    ADD = "add"  # write to a collection, which is created if there is none
    CREATE = "create"  # create a collection
    DELETE = "delete"  # remove a collection, which only its owner may


@dataclass(frozen=True, slots=True)
class Grants:
    """The tenants file's entry for a collection: tenants by name, or EVERYONE. Who may write may read.

    Without an `owner`, the tenant that created the collection owns it.
    """

    owner: str = ""
    read: frozenset[str] = frozenset()
    write: frozenset[str] = frozenset()


class Stored(NamedTuple):
    """What collections hold together, or what a write adds to it. `size_bytes` is on disk, as GetIndex says."""

    collections: int = 0
    documents: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much the collections that a tenant owns may hold together; None is unlimited."""

    collections: int | None = None
    documents: int | None = None
    bytes: int | None = None

    def excesses(self, subject: str, stored: Stored, added: Stored) -> list[Excess]:
        """The quotas without room for a write to what is stored. A write that adds nothing is over none."""
        limits = (self.collections, self.documents, self.bytes)
        return [
            Excess(subject, f"{limit} {name}; {has} are in use and the write adds {more}", name, inf)
            for name, limit, has, more in zip(("collections", "documents", "bytes"), limits, stored, added, strict=True)
            if limit is not None and more > 0 and has + more > limit
        ]


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant, with the API key or client certificate of this call.

    `services` (short names) and `models` are those it may use; None means all. `grants` are the tenants file's entries
    for collections, by their names; None if there is no tenants file: everything is open. `quotas` are those of all
    tenants that have some.
    """

    tenant: str
    key_id: str = ""
    roles: frozenset[str] = frozenset()
    services: frozenset[str] | None = None
    models: frozenset[str] | None = None
    grants: Mapping[str, Grants] | None = None
    quotas: Mapping[str, Quotas] = field(default_factory=dict)

    @property
    def is_admin(self) -> bool:
        return "admin" in self.roles

    def sees_model(self, name: str) -> bool:
        """Whether lists and errors may name the model. An administrator sees those, too, that it may not use."""
        return self.models is None or name in self.models or self.is_admin

    def use_model(self, name: str, shown: str = "") -> None:
        """Raises PermissionDenied, whether or not there is such a model, if the caller may not use it.

        `shown` stands for a name that the caller need not know, such as "the default model".
        """
        if self.models is not None and name not in self.models:
            allowed = ", ".join(sorted(self.models)) or "none"
            shown = shown or f'model "{name}"'
            raise PermissionDenied(f'tenant "{self.tenant}" may not use {shown}; models allowed: {allowed}')

    def is_told_of(self, service: str) -> bool:
        """Whether the caller may know why a service ("ChatService") is down, which may name models."""
        if self.is_admin:
            return True
        return self.models is None and (self.services is None or service in self.services)

    def may(self, right: Right, collection: str, recorded: str) -> bool:
        """Whether the caller has a right to an existing collection with this recorded owner, empty if it has none."""
        if self.grants is None or self.is_admin or self.tenant == self.owner(collection, recorded):
            return True
        entry = self.grants.get(collection, _NO_GRANTS)
        granted = entry.write | entry.read if right is Right.READ else entry.write
        return right is not Right.DELETE and not granted.isdisjoint((self.tenant, EVERYONE))

    def owner(self, collection: str, recorded: str) -> str:
        """The owner of a collection: as the tenants file says, or else the recorded one; empty if there is none."""
        return (self.grants or {}).get(collection, _NO_GRANTS).owner or recorded

    def shown_owner(self, collection: str, recorded: str) -> str:
        """The owner of a collection, if the caller may know it, else an empty text."""
        owner = self.owner(collection, recorded)
        return owner if self.is_admin or owner == self.tenant else ""

    def may_create(self, collection: str) -> bool:
        """Whether the caller may create a collection of this name. An entry of the tenants file reserves its name."""
        return self.grants is None or collection not in self.grants or self.may(Right.ADD, collection, "")

    def owner_of_new(self, collection: str) -> str:
        """The owner to record with a new collection; empty if there is no tenants file."""
        return "" if self.grants is None else self.owner(collection, self.tenant)

    def require(self, right: Right, collection: str, owners: Mapping[str, str]) -> None:
        """Raises CollectionNotGranted whether a collection is absent or the caller lacks the right.

        Callers that see all collections get CollectionNotFound.

        `owners` are the recorded owners of all collections that exist. For CREATE, raises CollectionExists if an entry
        of the tenants file reserves the name.
        """
        owner = owners.get(collection)
        if right is Right.CREATE:
            if owner is None and not self.may_create(collection):
                raise CollectionExists(collection)
        elif owner is None:
            if right is not Right.ADD or not self.may_create(collection):
                raise self._not_found(right, collection, owners)
        elif not self.may(right, collection, owner):
            raise self._not_found(right, collection, owners)

    def _not_found(self, right: Right, collection: str, owners: Mapping[str, str]) -> NotFound:
        known = [name for name, owner in owners.items() if self.may(right, name, owner)]
        if self.grants is None or self.is_admin:
            return CollectionNotFound(collection, known)
        return CollectionNotGranted(self.tenant, collection, *_IN_WORDS[right], known)


_NO_GRANTS = Grants()
_IN_WORDS = {
    Right.READ: ("read", "--read"),
    Right.WRITE: ("write to", "--write"),
    Right.ADD: ("write to", "--write"),
    Right.DELETE: ("delete", "--owner"),
}
LOCAL = Caller("local", roles=frozenset({"call", "ingest", "admin"}))  # every caller, if there is no tenants file
