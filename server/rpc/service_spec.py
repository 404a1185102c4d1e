"""ServiceSpec: one row of the table of services in `app.py`. A mistake in it stops the server when it starts."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import ServiceDescriptor

from server.domain.money import Cost
from server.tenancy.tenants import Role

if TYPE_CHECKING:  # a room that this one does not import
    from server.models.handle import Handle

Estimate = Callable[[Any], Cost]  # what a request costs at most; it raises what serving the request would raise
ANY_ROLE = None
FREE = None  # the cost of methods that use no tokens


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """The role that a caller needs, or ANY_ROLE, and what a request costs at most, or FREE."""

    role: Role | None
    cost: Estimate | None


@dataclass(frozen=True)
class ServiceSpec:
    """A service: `register` is the generated `add_..._to_server`, `methods` has every method of the descriptor.

    It serves while everything in `needs` is usable and nothing in `waits_for` is loading; what it waits for may fail
    without taking it down. `lanes` is how many threads compute for it, where that is not all of them. Services that
    are not `required` may be down while the server counts as ready.
    """

    descriptor: ServiceDescriptor
    register: Callable[[Any, Any], None]
    servicer: Any
    methods: Mapping[str, MethodSpec]
    needs: "tuple[Handle[Any], ...]" = ()
    waits_for: "tuple[Handle[Any], ...]" = ()
    lanes: int | None = None
    required: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError if `methods` are not those of the contract."""
        declared = {method.name for method in self.descriptor.methods}
        if missing := declared - self.methods.keys():
            raise ValueError(f"{self.full_name}: no role and cost for {', '.join(sorted(missing))}")
        if unknown := self.methods.keys() - declared:
            raise ValueError(f"{self.full_name} has no method {', '.join(sorted(unknown))}")

    @property
    def name(self) -> str:
        return str(self.descriptor.name)  # ChatService

    @property
    def full_name(self) -> str:
        return str(self.descriptor.full_name)  # quintet.v1.ChatService

    def trouble(self) -> str:
        """Why it does not serve, first what an operator must repair; empty if it serves."""
        wanted = (*self.needs, *(each for each in self.waits_for if not each.failed))
        troubled = sorted((each for each in wanted if each.trouble()), key=lambda each: not each.failed)
        return troubled[0].trouble() if troubled else ""


def methods_by_path(services: Iterable[ServiceSpec]) -> dict[str, tuple[ServiceSpec, str, MethodSpec]]:
    """Every method with its service and its name, by its path ("/quintet.v1.ChatService/Chat")."""
    return {
        f"/{service.full_name}/{name}": (service, name, method)
        for service in services
        for name, method in service.methods.items()
    }
