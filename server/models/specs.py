"""How models are brought into memory and out of it: what runs on the pool's loading thread."""

import contextlib
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from server.models import process_memory
from server.models.artefact import Artefact
from server.models.handle import Resident
from server.models.store import Use

T = TypeVar("T")
Found = tuple[Artefact | None, str]  # what to load, and what ails the version that it stands in for


@runtime_checkable
class OutOfProcess(Protocol):
    """An engine with a process of its own, whose memory counts, and which ends with the engine."""

    @property
    def pid(self) -> int:
        """The process."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass(frozen=True)
class ModelSpec(Generic[T]):
    """How a model is brought into memory.

    `prepare` imports what is needed and returns what constructs the warm engine; both run on the loading thread.
    `check` replays the golden inputs: it returns what differs, or nothing. A model without an artefact (of a hub)
    has no versions here. `engine` tells apart what one version takes on several engines. With `out_of_process` what is
    constructed is an OutOfProcess engine, which is loaded beside the others: it is another process that works.
    """

    name: str
    prepare: Callable[[], Callable[[Any], T]]
    check: Callable[[T, Artefact], Awaitable[str]]
    has_artefact: bool = True
    out_of_process: bool = False
    engine: str = ""
    preload: bool = True
    pinned: bool = False


def construct(plan: ModelSpec[T], artefact: Artefact | None, *, is_known: bool) -> tuple[T, Use]:
    """The engine, and what it took. Libraries are imported first: they stay, and belong to no model.

    What a model takes `is_known` if it was loaded before: then memory is not trimmed to measure it exactly, because
    others cannot allocate any meanwhile.
    """
    build = plan.prepare()
    if plan.out_of_process:
        return _construct_outside(build, artefact)
    if not is_known:
        process_memory.trim()
    before, begun = process_memory.resident_bytes(), time.monotonic()
    process_memory.forget_peak()
    engine = build(artefact)
    peak = process_memory.peak_bytes()
    if not is_known:
        process_memory.trim()
    resident = max(0, process_memory.resident_bytes() - before)
    return engine, Use(resident, max(resident, peak - before), time.monotonic() - begun)


def _construct_outside(build: Callable[[Artefact | None], T], artefact: Artefact | None) -> tuple[T, Use]:
    """What it takes is what its process takes: this one may load other models meanwhile."""
    begun = time.monotonic()
    engine = build(artefact)
    assert isinstance(engine, OutOfProcess)
    pid = engine.pid
    return engine, Use(process_memory.resident_bytes(pid), process_memory.peak_bytes(pid), time.monotonic() - begun)


def prepare_all(plans: Iterable[ModelSpec[Any]]) -> None:
    """Import what all of them need, before there is an engine. What cannot be imported fails its own model later."""
    for plan in plans:
        with contextlib.suppress(Exception):
            plan.prepare()
    process_memory.freeze()


def drop(resident: Resident[Any]) -> None:
    """Let go of an engine that nobody reads, and of its memory."""
    if isinstance(resident.engine, OutOfProcess):
        resident.engine.close()
    is_left = _following(resident.engine)
    resident.engine = None
    if is_left():
        process_memory.collect_all()  # it is part of a cycle
    process_memory.trim()


def _following(engine: object) -> Callable[[], bool]:
    """Tells later whether the engine is still there; if that cannot be known, it is."""
    try:
        found = weakref.ref(engine)
    except TypeError:
        return lambda: True
    return lambda: found() is not None
