"""What every method of the asyncio client does: a deadline, a request id, the key, and typed errors."""
# ruff: noqa: ASYNC109 - a timeout here is the deadline that the server is told

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message as ProtoMessage

from quintet_client.connection import CHANNEL_OPTIONS, Connection
from quintet_client.errors import translate

Q = TypeVar("Q", bound=ProtoMessage)
R = TypeVar("R", bound=ProtoMessage)


class AsyncCaller:
    """A channel to the server, for one event loop."""

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
            grpc.aio.secure_channel(target, credentials, CHANNEL_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._connection.address

    async def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        await self._channel.close()

    async def _unary(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q, timeout: float | None) -> R:
        options = self._connection.options(type(request), timeout)
        try:
            return await method(request, timeout=options.timeout, metadata=options.metadata)
        except grpc.RpcError as error:
            raise translate(error, options.request_id) from error

    async def _stream(
        self, method: grpc.aio.UnaryStreamMultiCallable[Q, R], request: Q, timeout: float | None
    ) -> AsyncGenerator[R, None]:
        options = self._connection.options(type(request), timeout)
        call = method(request, timeout=options.timeout, metadata=options.metadata)
        try:
            async for message in call:
                yield message
        except grpc.RpcError as error:
            raise translate(error, options.request_id) from error
        finally:
            call.cancel()

    async def _upload(
        self,
        method: grpc.aio.StreamUnaryMultiCallable[Q, R],
        kind: type[Q],
        requests: Iterator[Q],
        timeout: float | None,
    ) -> R:
        options = self._connection.options(kind, timeout)
        call = method(timeout=options.timeout, metadata=options.metadata)
        try:
            with contextlib.suppress(asyncio.InvalidStateError):  # the server has ended it; why, the answer says
                for request in requests:
                    await call.write(request)
                await call.done_writing()
            return await call
        except grpc.RpcError as error:
            raise translate(error, options.request_id) from error
        finally:
            call.cancel()
