"""Finds the tenant of a call by API key or client certificate, and checks its roles and the services it may use.

What a request touches is checked when it has been read (`access.py`).
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from server.domain.access import Caller
from server.domain.context import Metadata
from server.domain.errors import PermissionDenied, Unauthenticated
from server.rpc.service_spec import ServiceSpec, methods_by_path
from server.tenancy.api_keys import NO_KEY, id_of
from server.tenancy.tenants import Tenant
from server.tenancy.tenants_file import TenantsFile

log = logging.getLogger(__name__)

# One text for all cases, so that it does not reveal which keys exist.
_UNAUTHENTICATED = "a valid API key (authorization: Bearer KEY) or a known client certificate is required"
_WARN_EVERY_SECONDS = 10.0
# The identities in a verified client certificate: names of gRPC and of the tenants file.
_IDENTITIES = (("peer_uri", "uri"), ("peer_dns", "dns"), ("x509_common_name", "cn"))


Identify = Callable[[str, Metadata, Any], Caller]  # as TenantAuth.identify


class TenantAuth:
    """Authenticates and authorizes calls with the tenants file as it is then. `refused` counts by reason.

    If the call has an API key, its client certificate is ignored. Use it on the event loop only.
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
        """The caller of "/quintet.v1.ChatService/Chat". Raises Unauthenticated or PermissionDenied."""
        keys = [value for name, value in metadata if name == "authorization"]
        found = self._by_key(keys) if keys else self._by_certificate(context)
        if found is None:
            self._refuse(Unauthenticated.reason, context)
            raise Unauthenticated(_UNAUTHENTICATED)
        tenant, key_id = found
        service, name, role = self._methods[method]
        if tenant.services is not None and service not in tenant.services:
            allowed = ", ".join(sorted(tenant.services)) or "none"
            self._deny(context, f'tenant "{tenant.name}" may not use {service}; services allowed: {allowed}')
        if role is not None and role not in tenant.roles:
            roles = ", ".join(sorted(tenant.roles)) or "none"
            self._deny(context, f'{name} needs the role {role}; tenant "{tenant.name}" has: {roles}')
        file = self._tenants.latest
        return Caller(tenant.name, key_id, tenant.roles, tenant.services, tenant.models, file.grants, file.quotas)

    def _by_key(self, values: list[str | bytes]) -> tuple[Tenant, str] | None:
        scheme, _, text = values[0].partition(" ") if isinstance(values[0], str) else ("", "", "")
        if len(values) > 1 or scheme.lower() != "bearer" or (key_id := id_of(text)) is None:
            return None
        key, tenant = self._tenants.latest.keys.get(key_id, (NO_KEY, None))
        if not key.matches(text) or key.expires <= time.time() or tenant is None:
            return None
        return tenant, key_id

    def _by_certificate(self, context: Any) -> tuple[Tenant, str] | None:
        """The tenant of the client certificate; None if its identities belong to no tenant, or to several."""
        presented = context.auth_context()
        known = self._tenants.latest.certificates
        found = {
            identity: known[identity]
            for name, kind in _IDENTITIES
            for value in presented.get(name, ())
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
            log.warning("unauthenticated call from %s; %d such calls since the start", context.peer(), number)


def _identity(kind: str, value: bytes) -> str:
    text = value.decode(errors="replace")
    return f"{kind}:{text.lower() if kind == 'dns' else text}"
