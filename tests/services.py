"""The services of the contract, and the table of them that a running server has."""

import asyncio
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from google.protobuf.descriptor import ServiceDescriptor

from server.app import running
from server.rpc.service_spec import MethodSpec, ServiceSpec
from server.settings import Settings

PROTOS = Path(__file__).parents[1] / "protos" / "quintet" / "v1"
FILES: tuple[ModuleType, ...] = tuple(
    import_module(f"quintet.v1.{path.stem}_pb2") for path in sorted(PROTOS.glob("*.proto"))
)
SERVICES: dict[str, ServiceDescriptor] = {
    name: service for file in FILES for name, service in file.DESCRIPTOR.services_by_name.items()
}


@cache
def table() -> tuple[ServiceSpec, ...]:
    """The rows of a server without models. Not for a thread that runs an event loop."""

    async def served() -> tuple[ServiceSpec, ...]:
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(port=0, data=Path(folder), llm="off", shutdown_pause_seconds=0)
            async with running(settings) as app:
                return app.services

    return asyncio.run(served())


def methods() -> dict[str, dict[str, MethodSpec]]:
    """What the table says of every method, by the short names of service and method."""
    return {service.name: dict(service.methods) for service in table()}
