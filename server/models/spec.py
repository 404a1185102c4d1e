"""ModelSpec: which model there is and how it is brought into memory."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from server.domain.models import ModelTask
from server.models.artefact import Artefact
from server.models.golden import difference

T = TypeVar("T")


class ModelSettings(BaseModel):
    """How one model is run and kept in memory. engine, source, revision and device apply to text models only."""

    model_config = ConfigDict(extra="forbid")

    engine: Literal["onnx", "onnx-int8", "torch"] | None = Field(
        None, description="the runtime; unset: the one that the artefact's manifest recommends"
    )
    source: str | None = Field(None, description="repository of the model hub, or a folder; for engine torch only")
    revision: str | None = Field(None, description="commit of that repository; set it in production")
    device: str = Field("cpu", description="device of torch: cpu, cuda, cuda:1, mps")
    preload: bool = Field(True, description="load the model at the start, not at its first use")
    pinned: bool = Field(False, description="never evict the model")


@runtime_checkable
class OutOfProcess(Protocol):
    """An engine with a process of its own: that process's memory counts, and it ends with the engine."""

    @property
    def pid(self) -> int: ...

    @property
    def is_lost(self) -> bool:
        """Whether its process cannot be started again, so that the model has to be loaded anew."""

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class ModelSpec(Generic[T]):
    """How a model is loaded.

    `prepare` imports libraries and returns what makes the warm engine of an Artefact (of None for a hub's model, which
    has no artefact). Both run on the loading thread. `check` replays the golden inputs and returns what differs, or "".
    With `out_of_process` the engine is an OutOfProcess, and it is loaded beside the others.
    """

    name: str
    task: ModelTask
    prepare: Callable[[], Callable[[Any], T]]
    settings: ModelSettings = field(default_factory=ModelSettings)
    check: Callable[[T, Artefact], Awaitable[str]] = difference
    out_of_process: bool = False

    @property
    def has_artefact(self) -> bool:
        """Whether it has versions here; a hub's model has none."""
        return not self.settings.source

    @property
    def engine(self) -> str:
        """What tells apart the memory that one version takes on several engines."""
        return self.settings.engine or "recommended"


def imported(path: str, *arguments: Any, **options: Any) -> Callable[[], Callable[[Artefact], Any]]:
    """The `prepare` of an engine's class, "module:Class", that takes the artefact and then these arguments."""

    def prepare() -> Callable[[Artefact], Any]:
        kind = resolve_name(path)
        return lambda artefact: kind(artefact, *arguments, **options)

    return prepare
