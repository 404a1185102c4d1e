"""grpc.health.v1 for each service. It never runs a model, and bypasses authentication and limits.

grpc_health's own servicer cannot end its Watch streams, and one open Watch delays a graceful stop by its whole grace.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

log = logging.getLogger(__name__)
Response = health_pb2.HealthCheckResponse
LIVE = ""
READY = "ready"


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """`messages` says for every name why it does not serve; empty if it serves. `required` are the names that count for
    "ready".

    "" is the process itself; "ready" serves unless a required service is down because of something in this server.
    """

    def __init__(self, names: Iterable[str], required: set[str]) -> None:
        self.messages = dict.fromkeys(names, "starting")
        self.required = required
        self._blocking = set(required)
        self._stopping = False
        self._changed = asyncio.Event()

    def set(self, service: str, message: str, *, is_blocking: bool = True) -> None:
        """`message` says why the service does not serve; empty if it does. A required one that does not makes "ready"
        NOT_SERVING if it `is_blocking`.
        """
        was_ready, before = self.ready, self.messages[service]
        self._blocking.discard(service)
        if message and is_blocking and service in self.required:
            self._blocking.add(service)
        self.messages[service] = message
        if before == message and was_ready == self.ready:
            return
        if not self._stopping:
            if not message and before:
                log.info("%s: SERVING", service)
            elif message and not before:
                log.warning("%s: NOT_SERVING: %s", service, message)
            if self.ready != was_ready:
                log.info("ready: %s", "SERVING" if self.ready else "NOT_SERVING")
        self._notify()

    def stop(self) -> None:
        """Everything is NOT_SERVING from now on; every Watch sends that and ends."""
        self._stopping = True
        self._notify()

    @property
    def ready(self) -> bool:
        """True if no required service is down because of something in this server."""
        return not self._stopping and not self._blocking

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> int:
        if service not in (LIVE, READY, *self.messages):
            return int(Response.SERVICE_UNKNOWN)
        serving = self.ready if service == READY else not self._stopping and not self.messages.get(service)
        return int(Response.SERVING if serving else Response.NOT_SERVING)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """The current status. NOT_FOUND for a name that no service has."""
        status = self._status(request.service)
        if status == Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f'no such service: "{request.service}"')
        return Response(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The current status, and each new one, until the server stops."""
        sent = -1
        while True:
            changed = self._changed
            if (status := self._status(request.service)) != sent:
                sent = status
                yield Response(status=status)
            if self._stopping:
                return
            await changed.wait()

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:
        """The status of the services. Names of single models are for callers that know them."""
        names = (LIVE, READY, *(name for name in self.messages if "/" not in name))
        return health_pb2.HealthListResponse(statuses={name: Response(status=self._status(name)) for name in names})
