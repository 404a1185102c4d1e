"""Opens the port, with TLS if there are certificates."""

import grpc

from server.rpc.certificates import Certificates


class CannotStart(Exception):
    """The server cannot start; the message is for the operator."""


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
