"""The server's TLS certificates: checked before they are used, followed while the server runs.

Changed certificates are used for new connections. A connection keeps its own until it ends, after half an hour at most
(`grpc.max_connection_age_ms`). Certificates that clients could not use are ignored; the current ones stay.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from server.domain.reloading_file import Contents, ReloadingFile

log = logging.getLogger(__name__)


class End(NamedTuple):
    """When a certificate of `file` ends, in seconds since the epoch; `subject` names it."""

    file: Path
    subject: str
    end: float

    def warning(self, soon_seconds: float) -> str:
        """What to tell the operator; "" if it ends later than in `soon_seconds`. The text does not change by itself."""
        left = self.end - time.time()
        if left > soon_seconds:
            return ""
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.end))
        state = "expires" if left > 0 else "expired"
        return f"{self.file}: the certificate of {self.subject} {state} on {when}; replace it"


class Checked(NamedTuple):
    """Usable certificates: gRPC's configuration, the ends of all, and what else an operator should repair.

    At `changes`, in seconds since the epoch, another check of the same files gives another result.
    """

    configuration: grpc.ServerCertificateConfiguration
    ends: Sequence[End]
    remarks: Sequence[str]
    changes: float


class Certificates(ReloadingFile[Checked]):
    """The server's certificate and key, and the certificate authorities of clients, all PEM.

    With `client_ca` every client must have a certificate: gRPC's Python server has no optional client certificates.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Read the files. Raises BadFile."""
        from server.rpc.certificate_checks import SOON_SECONDS, check  # imports cryptography, which only TLS needs

        self._soon_seconds = SOON_SECONDS
        self._files = (certificate, key, *([client_ca] if client_ca else []))
        self._given: Checked | None = None
        self._told: Sequence[str] = ()

        def make(contents: Contents) -> Checked:
            return check(self._files, contents)

        super().__init__("certificates", self._files, make)
        self._tell()

    @property
    def warnings(self) -> Sequence[str]:
        """The problem of the files, and which of the current certificates end soon or have ended."""
        return [*super().warnings, *self._own_warnings()]

    @property
    def ends(self) -> Mapping[str, float]:
        """When the first certificate of each current file ends, in seconds since the epoch."""
        found: dict[str, float] = {}
        for each in self.latest.ends:
            found[str(each.file)] = min(each.end, found.get(str(each.file), each.end))
        return found

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials of a port that use the latest files for each new connection."""
        renewed: Any = self._renewed  # may return None, though grpc's types do not say so
        return grpc.dynamic_ssl_server_credentials(
            self.latest.configuration, renewed, require_client_authentication=len(self._files) > 2
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificates, or None if they have not changed. gRPC calls it before each handshake, on a thread."""
        latest = self.latest
        if latest is self._given:
            return None
        self._given = latest
        return latest.configuration

    def _reload_if_changed(self) -> None:
        if time.time() >= self.latest.changes:
            self.check_again()
        super()._reload_if_changed()
        self._tell()

    def _own_warnings(self) -> Sequence[str]:
        latest = self.latest
        return [*latest.remarks, *filter(None, (end.warning(self._soon_seconds) for end in latest.ends))]

    def _tell(self) -> None:
        """Log each warning once."""
        before, self._told = self._told, self._own_warnings()
        for warning in self._told:
            if warning not in before:
                log.warning(warning)
