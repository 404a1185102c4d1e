"""How models are brought into memory and out of it: what runs on the pool's loading thread."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from server.runtime import memory
from server.runtime.artefact import Artefact
from server.runtime.models import Resident
from server.runtime.store import Use

T = TypeVar("T")
Found = tuple[Artefact | None, str]  # what to load, and what is to be said of it


@dataclass(frozen=True)
class Plan(Generic[T]):
    """How a model is brought into memory.

    `prepare` imports what is needed and returns what constructs the warm engine; both run on the loading thread.
    `check` replays the golden inputs: it returns what differs, or nothing. A model without an artefact (of a hub)
    has no versions here. `engine` tells apart what one version takes on several engines.
    """

    name: str
    prepare: Callable[[], Callable[[Any], T]]
    check: Callable[[T, Artefact], Awaitable[str]]
    has_artefact: bool = True
    engine: str = ""
    preload: bool = True
    pinned: bool = False


def construct(plan: Plan[T], artefact: Artefact | None) -> tuple[T, Use]:
    """The engine, and what it took. Libraries are imported first: they stay, and belong to no model."""
    build = plan.prepare()
    memory.give_back()
    before, begun = memory.resident_bytes(), time.monotonic()
    memory.forget_peak()
    engine = build(artefact)
    peak = memory.peak_bytes()
    memory.give_back()
    resident = max(0, memory.resident_bytes() - before)
    return engine, Use(resident, max(resident, peak - before), time.monotonic() - begun)


def drop(resident: Resident[Any]) -> None:
    """Let go of an engine that nobody reads, and of its memory."""
    resident.engine = None
    memory.give_back()
