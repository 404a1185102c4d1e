"""A grpc.aio server whose accepting of calls survives any request.

grpcio 1.85 decodes the path of every call in the loop that accepts calls: one path that is not UTF-8, from anyone who
can connect, ends that loop and closes the port, while the process lives on. Here every method is registered, so that
gRPC's core compares paths as bytes, and each method has a loop of its own. A call of any other path is answered with
UNIMPLEMENTED and its path is never decoded.
"""

import asyncio
import logging
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # not public, so pyproject.toml bounds grpcio's version

_UNKNOWN = "unknown"
_CALLERS_DOING = ("Invalid encoding on ", "ExecuteBatchError raised in core by servicer method")


def make_server(options: tuple[tuple[str, int], ...]) -> grpc.aio.Server:
    """A server of methods that are added with `add_registered_method_handlers`; generic handlers are not asked."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)
    server: Any = grpc.aio.server(options=options)
    server._server = _Server(asyncio.get_running_loop(), None, (), (), options, None)
    return server  # type: ignore[no-any-return]


def _is_news(record: logging.LogRecord) -> bool:
    """False for what any client can make gRPC log as an error with a traceback: strange headers, and going away."""
    return not str(record.msg).startswith(_CALLERS_DOING)


class _Server(cygrpc.AioServer):  # type: ignore[misc]  # Cython has no types
    """Replaces how calls are accepted; starting and stopping stay gRPC's."""

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self._handlers: dict[str, Any] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        super().add_registered_method_handlers(handlers)
        self._handlers |= handlers

    def resolve_handler(self, details: Any) -> Any:
        """What gRPC asks for the handler of a call."""
        return self._handlers.get(details.method)

    def _make_request_call_future(self, method: bytes | None) -> "asyncio.Task[None]":
        """Called by gRPC once for each method, and for all other paths. Ends when the server stops."""
        return asyncio.get_running_loop().create_task(self._accept(method))

    async def _accept(self, method: bytes | None) -> None:
        loop = asyncio.get_running_loop()
        name = method.decode() if method is not None else _UNKNOWN
        while True:
            state = await (self._request_call() if method is None else self._request_registered_call(method))
            call = cygrpc._handle_rpc(name, self, (), state, loop, False)
            task = loop.create_task(cygrpc._schedule_rpc_coro(call, state, loop, name))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
