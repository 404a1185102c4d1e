"""grpc.health.v1: the truth per service. Never runs a model, passes no limit, and is answered under any load.

The ready-made servicer cannot end its Watch streams, and one open Watch holds a graceful stop for its whole grace.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

log = logging.getLogger(__name__)
Status = health_pb2.HealthCheckResponse
LIVE = ""
READY = "ready"


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """`messages` maps every service to why it does not serve; an empty message means that it does.

    "" is the process itself; "ready" follows from the `required` services.
    """

    def __init__(self, services: list[str], required: set[str]) -> None:
        self.messages = dict.fromkeys(services, "starting")
        self._required = required
        self._stopping = False
        self._changed = asyncio.Event()

    def set(self, service: str, message: str) -> None:
        """`message` says why the service does not serve; empty if it does."""
        if (before := self.messages[service]) == message:
            return
        was_ready = self.ready
        self.messages[service] = message
        if not self._stopping:  # what goes then is meant to
            if not message:
                log.info("%s: SERVING", service)
            elif not before:
                log.warning("%s: NOT_SERVING: %s", service, message)
            if self.ready != was_ready:
                log.info("ready: %s", "SERVING" if self.ready else "NOT_SERVING")
        self._wake()

    def stop(self) -> None:
        """Everything is NOT_SERVING from now on, and every Watch ends after saying so."""
        self._stopping = True
        self._wake()

    @property
    def ready(self) -> bool:
        """True if every required service serves."""
        return not self._stopping and not any(self.messages[service] for service in self._required)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> int:
        if service == LIVE:
            serving = not self._stopping
        elif service == READY:
            serving = self.ready
        elif service in self.messages:
            serving = not self._stopping and not self.messages[service]
        else:
            return int(Status.SERVICE_UNKNOWN)
        return int(Status.SERVING if serving else Status.NOT_SERVING)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """The status now. NOT_FOUND for a name that no service has."""
        status = self._status(request.service)
        if status == Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f'no such service: "{request.service}"')
        return Status(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and after every change, until the server stops."""
        sent = -1
        while True:
            changed = self._changed
            if (status := self._status(request.service)) != sent:
                sent = status
                yield Status(status=status)
            if self._stopping:
                return
            await changed.wait()

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:
        """The status of everything."""
        names = (LIVE, READY, *self.messages)
        return health_pb2.HealthListResponse(statuses={name: Status(status=self._status(name)) for name in names})
