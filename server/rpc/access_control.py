"""Who comes in and how: the tenants, the certificates, and the port. Everything that it needs of files is followed."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from server.domain.reloading_file import ReloadingFile
from server.rpc.auth import ROLES, TenantAuth
from server.rpc.listener import Certificates, listen
from server.settings import Settings
from server.tenancy.tenants_file import TenantsFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AccessControl:
    """`tenants` and `auth` are None if nobody is asked who they are, `certificates` if nothing is encrypted."""

    tenants: TenantsFile | None
    auth: TenantAuth | None
    certificates: Certificates | None
    settings: Settings

    @classmethod
    @asynccontextmanager
    async def create(cls, settings: Settings) -> AsyncIterator["AccessControl"]:
        """Read the files, and follow them while the body runs. Raises BadFile."""
        tenants = TenantsFile(settings.tenants, ROLES) if settings.tenants else None
        certificates = None
        if settings.tls_cert and settings.tls_key:
            certificates = Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        door = cls(tenants, TenantAuth(tenants) if tenants else None, certificates, settings)
        async with AsyncExitStack() as stack:
            for file in door.followed:
                await stack.enter_async_context(file.following())
            yield door

    def open(self, server: grpc.aio.Server) -> str:
        """Listen; returns host:port. Raises PortInUse."""
        address = listen(server, self.settings.host, self.settings.port, self.certificates)
        if self.tenants and not self.certificates and not self.settings.is_local:
            log.warning("keys cross the network in the clear: QUINTET_TLS_CERT and QUINTET_TLS_KEY encrypt it")
        return address

    @property
    def followed(self) -> list[ReloadingFile[Any]]:
        """The files that are followed."""
        return [file for file in (self.tenants, self.certificates) if file]

    def problems(self) -> list[str]:
        """What is wrong with the latest of them."""
        return [file.problem for file in self.followed if file.problem]

    @property
    def refused(self) -> Mapping[str, int]:
        """Calls that were turned away, by reason."""
        return self.auth.refused if self.auth else {}

    @property
    def access(self) -> str:
        """Who may call, for people."""
        if self.tenants:
            return f"Callers need a key or a certificate that {self.settings.tenants} knows."
        if self.settings.is_local:
            return "There is no file of tenants (QUINTET_TENANTS): no key is asked for, and only this machine may call."
        return "Whoever can reach it may call: QUINTET_ALLOW_ANONYMOUS says so."
