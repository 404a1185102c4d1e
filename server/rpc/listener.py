"""The port: where the server listens, and whether what crosses the network is encrypted.

Certificates are read anew when their files change. A connection keeps those with which it was made, for half an hour
at most (`grpc.max_connection_age_ms`).
"""

import logging
import ssl
from pathlib import Path
from typing import Any

import grpc

from server.domain.reloading_file import BadFile, Contents, ReloadingFile

log = logging.getLogger(__name__)


class CannotStart(Exception):
    """Why, for whoever starts the server."""


class PortInUse(CannotStart):
    """The address cannot be listened on."""


class Certificates(ReloadingFile[grpc.ServerCertificateConfiguration]):
    """The server's certificate and key, and the authorities that may have signed those of clients, all PEM.

    With `client_ca` every client must bring a certificate: gRPC's Python server cannot ask for one and do without it.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Read them. Raises BadFile."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._given: grpc.ServerCertificateConfiguration | None = None
        super().__init__("certificates", [certificate, key, *([client_ca] if client_ca else [])], self._configuration)

    def credentials(self) -> grpc.ServerCredentials:
        """For a port; it uses the latest files for every new connection."""
        renewed: Any = self._renewed  # may return None, which its types do not know
        return grpc.dynamic_ssl_server_credentials(
            self.latest, renewed, require_client_authentication=self._client_ca is not None
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What has changed, or None. gRPC asks on threads of its own, before every handshake."""
        latest = self.latest
        if latest is self._given:
            return None
        self._given = latest
        return latest

    def _configuration(self, contents: Contents) -> grpc.ServerCertificateConfiguration:
        """Checked here, because gRPC would refuse every handshake without a word to whoever runs it."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self._certificate, self._key, password=lambda: "")  # else it would ask the terminal
        except (ssl.SSLError, ValueError) as error:
            raise BadFile(f"{self._certificate} and {self._key}: {_why(error)}") from None
        if self._client_ca:
            _check_authorities(self._client_ca, contents[2])
        certificate, key, *authorities = contents
        if (self._certificate.read_bytes(), self._key.read_bytes()) != (certificate, key):
            raise BadFile(f"{self._certificate} and {self._key}: replaced while they were read")
        return grpc.ssl_server_certificate_configuration([(key, certificate)], *authorities)


def _check_authorities(path: Path, content: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise BadFile(f"{path}: {_why(error)}") from None


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or ""
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is not the certificate's"
    return "no unencrypted PEM" + (f" ({reason.lower().replace('_', ' ')})" if reason else "")


def listen(server: grpc.aio.Server, host: str, port: int, certificates: Certificates | None) -> str:
    """Open the port; returns host:port. Raises PortInUse."""
    wanted = f"{host}:{port}"
    try:
        if certificates:
            found = server.add_secure_port(wanted, certificates.credentials())
        else:
            found = server.add_insecure_port(wanted)
    except RuntimeError:
        raise PortInUse(f"cannot listen on {wanted}: in use? Set QUINTET_PORT to another port, or to 0") from None
    return f"{host}:{found}"
