"""What every method of the client does: a deadline, a request id, the key, and typed errors."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message as ProtoMessage

from quintet_client.connection import CHANNEL_OPTIONS, Connection
from quintet_client.errors import translate

Q = TypeVar("Q", bound=ProtoMessage)
R = TypeVar("R", bound=ProtoMessage)


class Caller:
    """A channel to the server. `aio_caller.py` has the same for asyncio."""

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        tls: bool = False,
        root_certificates: bytes | None = None,
        client_certificate: bytes | None = None,
        client_key: bytes | None = None,
        timeout: float | None = None,
    ) -> None:
        self._connection = Connection.create(
            address,
            api_key=api_key,
            tls=tls,
            root_certificates=root_certificates,
            client_certificate=client_certificate,
            client_key=client_key,
            timeout=timeout,
        )
        target, credentials = self._connection.address, self._connection.credentials()
        self._channel = (
            grpc.secure_channel(target, credentials, CHANNEL_OPTIONS)
            if credentials
            else grpc.insecure_channel(target, CHANNEL_OPTIONS)
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._connection.address

    def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        self._channel.close()

    def _unary(self, method: grpc.UnaryUnaryMultiCallable[Q, R], request: Q, timeout: float | None) -> R:
        options = self._connection.options(type(request), timeout)
        try:
            return method(request, timeout=options.timeout, metadata=options.metadata)
        except grpc.RpcError as error:
            raise translate(error, options.request_id) from error

    def _stream(
        self, method: grpc.UnaryStreamMultiCallable[Q, R], request: Q, timeout: float | None
    ) -> Generator[R, None, None]:
        options = self._connection.options(type(request), timeout)
        call = method(request, timeout=options.timeout, metadata=options.metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise translate(error, options.request_id) from error
        finally:
            call.cancel()

    def _upload(
        self, method: grpc.StreamUnaryMultiCallable[Q, R], kind: type[Q], requests: Iterator[Q], timeout: float | None
    ) -> R:
        options = self._connection.options(kind, timeout)
        failures: list[Exception] = []

        def told() -> Iterator[Q]:
            """GRPC takes the requests on a thread of its own, where it would lose what they raise."""
            try:
                yield from requests
            except Exception as error:
                failures.append(error)
                raise

        try:
            return method(told(), timeout=options.timeout, metadata=options.metadata)
        except grpc.RpcError as error:
            if failures:
                raise failures[0] from None
            raise translate(error, options.request_id) from error
