"""Opens the port, with TLS if there are certificates.

Changed certificates are used for new connections. A connection keeps its own until it ends, after half an hour at most
(`grpc.max_connection_age_ms`).
"""

import ssl
from pathlib import Path
from typing import Any

import grpc

from server.domain.reloading_file import BadFile, Contents, ReloadingFile


class CannotStart(Exception):
    """The server cannot start; the message is for the operator."""


class Certificates(ReloadingFile[grpc.ServerCertificateConfiguration]):
    """The server's certificate and key, and the certificate authorities of clients, all PEM.

    With `client_ca` every client must have a certificate: gRPC's Python server has no optional client certificates.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Read the files. Raises BadFile."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._given: grpc.ServerCertificateConfiguration | None = None
        super().__init__("certificates", [certificate, key, *([client_ca] if client_ca else [])], self._configuration)

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials of a port that use the latest files for each new connection."""
        renewed: Any = self._renewed  # may return None, though grpc's types do not say so
        return grpc.dynamic_ssl_server_credentials(
            self.latest, renewed, require_client_authentication=self._client_ca is not None
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificates, or None if they have not changed. gRPC calls it before each handshake, on a thread."""
        latest = self.latest
        if latest is self._given:
            return None
        self._given = latest
        return latest

    def _configuration(self, contents: Contents) -> grpc.ServerCertificateConfiguration:
        """Checked here, because with invalid files gRPC refuses every handshake and logs nothing."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise BadFile(f"{self._certificate} and {self._key}: {_why(error)}") from None
        if self._client_ca:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=contents[2].decode("ascii"))
            except (ssl.SSLError, ValueError) as error:
                raise BadFile(f"{self._client_ca}: {_why(error)}") from None
        certificate, key, *authorities = contents
        if (self._certificate.read_bytes(), self._key.read_bytes()) != (certificate, key):
            raise BadFile(f"{self._certificate} and {self._key}: changed while they were read")
        return grpc.ssl_server_certificate_configuration([(key, certificate)], *authorities)


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or ""
    if reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    return "not unencrypted PEM" + (f" ({reason.lower().replace('_', ' ')})" if reason else "")


def listen(server: grpc.aio.Server, host: str, port: int, certificates: Certificates | None) -> str:
    """Open the port; returns host:port. Raises CannotStart."""
    wanted = f"{host}:{port}"
    try:
        if certificates:
            found = server.add_secure_port(wanted, certificates.credentials())
        else:
            found = server.add_insecure_port(wanted)
    except RuntimeError:
        raise CannotStart(f"cannot listen on {wanted}: in use? Set QUINTET_PORT to another port, or to 0") from None
    return f"{host}:{found}"
