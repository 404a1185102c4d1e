"""ServiceSpec: one row of the table of services in `app.py`. A mistake in it stops the server when it starts."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool

from server.domain.access import Right
from server.domain.money import Cost
from server.rpc.access import Touch
from server.tenancy.tenants import Role

if TYPE_CHECKING:  # a room that this one does not import
    from server.models.handle import Handle

Estimate = Callable[[Any], Cost]  # what a request costs at most; it raises what serving the request would raise
ANY_ROLE = None
FREE = None  # the cost of methods that use no tokens


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """The role that a caller needs, or ANY_ROLE; what a request costs at most, or FREE; and what it touches."""

    role: Role | None
    cost: Estimate | None
    touches: tuple[Touch, ...]

    def __post_init__(self) -> None:
        """Raises ValueError for a row that would leave something unchecked."""
        if not self.touches:
            raise ValueError("a method's row must say what the method touches")
        if self.role is not Role.ADMIN and any(touch.right is Right.MANAGE for touch in self.touches):
            raise ValueError("what manages needs the role admin")


@dataclass(frozen=True)
class ServiceSpec:
    """A service: `servicer` extends a generated class, `methods` has every method of the contract.

    It serves while everything in `needs` is usable and nothing in `waits_for` is loading; what it waits for may fail
    without taking it down. Each of `extras` has a health of its own and takes down nothing else. `lanes` is how many
    threads compute for it, where that is not all of them. Services that are not `required` may be down while the server
    counts as ready.
    """

    servicer: Any
    methods: Mapping[str, MethodSpec]
    needs: "tuple[Handle[Any], ...]" = ()
    waits_for: "tuple[Handle[Any], ...]" = ()
    extras: "Mapping[str, Handle[Any]]" = field(default_factory=dict)
    lanes: int | None = None
    required: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError if `methods` are not those of the contract."""
        descriptor = descriptor_pool.Default().FindServiceByName(self.full_name)
        declared = {method.name for method in descriptor.methods}
        if missing := declared - self.methods.keys():
            raise ValueError(f"{self.full_name}: no role and cost for {', '.join(sorted(missing))}")
        if unknown := self.methods.keys() - declared:
            raise ValueError(f"{self.full_name} has no method {', '.join(sorted(unknown))}")

    @property
    def _generated(self) -> type:
        """The servicer's generated class, quintet.v1.chat_pb2_grpc.ChatServiceServicer."""
        return next(each for each in type(self.servicer).__mro__ if each.__module__.endswith("_pb2_grpc"))

    @property
    def name(self) -> str:
        """The short name, ChatService."""
        return self._generated.__name__.removesuffix("Servicer")

    @property
    def full_name(self) -> str:
        """The name with its package, quintet.v1.ChatService."""
        return f"{self._generated.__module__.rpartition('.')[0]}.{self.name}"

    def register(self, server: Any) -> None:
        """Add the servicer to a grpc.aio.Server, or to what takes handlers like one."""
        add = getattr(sys.modules[self._generated.__module__], f"add_{self._generated.__name__}_to_server")
        add(self.servicer, server)

    def trouble(self) -> str:
        """Why it does not serve, first what an operator must repair; empty if it serves."""
        troubled = sorted(self._troubled(), key=lambda each: not each.failed)
        return troubled[0].trouble() if troubled else ""

    def health(self) -> Iterator[tuple[str, str, bool]]:
        """Each of its names in grpc.health.v1, why that does not serve, and whether the server cannot be ready then.

        An outage elsewhere, as of all providers of a route, does not make this server less ready.
        """
        is_blocking = self.required and not all(each.is_away for each in self._troubled())
        yield self.full_name, self.trouble(), is_blocking
        for name, handle in self.extras.items():
            yield f"{self.full_name}/{name}", handle.trouble(), False

    def _troubled(self) -> "list[Handle[Any]]":
        wanted = (*self.needs, *(each for each in self.waits_for if not each.failed))
        return [each for each in wanted if each.trouble()]


def methods_by_path(services: Iterable[ServiceSpec]) -> dict[str, tuple[ServiceSpec, str, MethodSpec]]:
    """Every method with its service and its name, by its path ("/quintet.v1.ChatService/Chat")."""
    return {
        f"/{service.full_name}/{name}": (service, name, method)
        for service in services
        for name, method in service.methods.items()
    }


def touches_by_path(services: Iterable[ServiceSpec]) -> dict[str, tuple[Touch, ...]]:
    """What every method touches, by its path."""
    return {path: method.touches for path, (_, _, method) in methods_by_path(services).items()}
