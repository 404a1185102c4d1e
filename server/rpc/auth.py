"""Who calls, and whether they may: API keys, client certificates, roles and the services that a tenant may use.

Which models a tenant may ask for is known once the request is read: `rpc/model_access.py`.
"""

import logging
import time
from collections.abc import Iterable
from typing import Any, Protocol

from server.domain.context import Caller, Metadata
from server.domain.errors import PermissionDenied, Unauthenticated
from server.rpc.service_spec import ServiceSpec, methods_by_path
from server.tenancy.api_keys import NOBODYS, id_of
from server.tenancy.tenants import Tenant
from server.tenancy.tenants_file import TenantsFile

log = logging.getLogger(__name__)

# One text for all: it must not tell which keys exist.
_UNKNOWN = "this server asks for an API key that it knows (authorization: Bearer KEY) or a client certificate"
_WARN_EVERY_SECONDS = 10.0
# Where a verified certificate says whose it is, in gRPC's words and in those of the tenants' file.
_IDENTITIES = (("peer_uri", "uri"), ("peer_dns", "dns"), ("x509_common_name", "cn"))


class Auth(Protocol):
    """Knows the callers."""

    def identify(self, method: str, metadata: Metadata, context: Any) -> Caller:
        """The caller of "/quintet.v1.ChatService/Chat". Raises Unauthenticated or PermissionDenied."""
        ...


class TenantAuth:
    """Knows those of a file of tenants, as it is at the moment of the call. `refused` counts by reason.

    A key decides if there is one, else the client certificate. Used on the event loop alone.
    """

    def __init__(self, tenants: TenantsFile, services: Iterable[ServiceSpec]) -> None:
        self._tenants = tenants
        self._methods = {
            path: (service.name, name, method.role)
            for path, (service, name, method) in methods_by_path(services).items()
        }
        self._next_warning = 0.0
        self.refused = {Unauthenticated.reason: 0, PermissionDenied.reason: 0}

    def identify(self, method: str, metadata: Metadata, context: Any) -> Caller:
        """The caller. Raises Unauthenticated or PermissionDenied."""
        keys = [value for name, value in metadata if name == "authorization"]
        found = self._by_key(keys) if keys else self._by_certificate(context)
        if found is None:
            self._refuse(Unauthenticated.reason, context)
            raise Unauthenticated(_UNKNOWN)
        tenant, key_id = found
        service, name, role = self._methods[method]
        if tenant.services is not None and service not in tenant.services:
            allowed = ", ".join(sorted(tenant.services)) or "none"
            self._deny(context, f'tenant "{tenant.name}" may not use {service}; services allowed: {allowed}')
        if role is not None and role not in tenant.roles:
            roles = ", ".join(sorted(tenant.roles)) or "none"
            self._deny(context, f'{name} needs the role {role}; tenant "{tenant.name}" has: {roles}')
        return Caller(tenant.name, key_id, tenant.roles, tenant.models)

    def _by_key(self, values: list[str | bytes]) -> tuple[Tenant, str] | None:
        scheme, _, text = values[0].partition(" ") if isinstance(values[0], str) else ("", "", "")
        if len(values) > 1 or scheme.lower() != "bearer" or (key_id := id_of(text)) is None:
            return None
        key = self._tenants.latest.keys.get(key_id)
        stored = key.stored if key else NOBODYS
        if not stored.fits(text) or key is None or stored.expires <= time.time():
            return None
        return key.tenant, key_id

    def _by_certificate(self, context: Any) -> tuple[Tenant, str] | None:
        """Whose certificate it is; nobody's if what it says is known of several tenants, or of none."""
        said = context.auth_context()
        known = self._tenants.latest.certificates
        found = {
            identity: known[identity]
            for name, kind in _IDENTITIES
            for value in said.get(name, ())
            if (identity := _identity(kind, value)) in known
        }
        if len({tenant.name for tenant in found.values()}) != 1:
            return None
        return next((tenant, identity) for identity, tenant in found.items())

    def _deny(self, context: Any, message: str) -> None:
        self._refuse(PermissionDenied.reason, context)
        raise PermissionDenied(message)

    def _refuse(self, reason: str, context: Any) -> None:
        self.refused[reason] += 1
        if reason == Unauthenticated.reason and (now := time.monotonic()) >= self._next_warning:
            self._next_warning = now + _WARN_EVERY_SECONDS
            number = self.refused[reason]
            log.warning("no known key or certificate: %s, the latest of %d such calls", context.peer(), number)


def _identity(kind: str, value: bytes) -> str:
    text = value.decode(errors="replace")
    return f"{kind}:{text.lower() if kind == 'dns' else text}"
