"""The ModelManager where a test must hold a load still: engines that are built when the test says so."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from server.domain.errors import ModelCheckFailed, ModelDoesNotFit, ModelLoading, ModelUnavailable
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.models import process_memory
from server.models.artefact import Artefact, open_artefact, write_manifest
from server.models.golden import GOLDEN, difference
from server.models.handle import Handle, State
from server.models.manager import ModelManager
from server.models.spec import ModelSpec
from server.models.store import ModelStore
from tests.waiting import until


class Engine:
    """Keeps the artefact's identity, and tells when it is gone."""

    def __init__(self, artefact: Artefact, gone: Callable[[str], None]) -> None:
        identity = ModelIdentity(artefact.manifest.name, artefact.manifest.version, artefact.digest)
        self.description = ModelDescription(identity, ModelTask.CLASSIFICATION, "test")
        self._gone = gone
        self.itself: Engine | None = None  # a cycle, if a test wants one

    def __del__(self) -> None:
        self._gone(self.description.identity.version)


class Workshop:
    """A manager with the model "m", whose engines are built once `may_build` is set, and fail if `broken` is."""

    def __init__(self, manager: ModelManager, models: Path) -> None:
        self.manager, self.models = manager, models
        self.may_build = threading.Event()
        self.may_build.set()
        self.building = threading.Event()
        self.broken: Exception | None = None
        self.differs = ""
        self.built = 0
        self.gone: list[str] = []
        self.handle: Handle[Engine] = manager.add(
            ModelSpec("m", ModelTask.CLASSIFICATION, self._prepare, check=self._check)
        )

    def _prepare(self) -> Callable[[Artefact], Engine]:
        return self._build

    def _build(self, artefact: Artefact) -> Engine:
        self.building.set()
        self.may_build.wait(30)
        if self.broken:
            raise self.broken
        self.built += 1
        return Engine(artefact, self.gone.append)

    async def _check(self, engine: Engine, artefact: Artefact) -> str:
        return self.differs

    def publish(self, version: str, alias: str = "current", weights: str = "") -> None:
        made = self.models.parent / "made" / f"{version}{weights}"
        made.mkdir(parents=True)
        (made / "weights").write_text(weights or version)
        write_manifest(made, name="m", version=version, licence="MIT")
        ModelStore(self.models).publish(made, alias)


@pytest.fixture
async def workshop(tmp_path: Path) -> AsyncIterator[Workshop]:
    async with aclosing(ModelManager(ModelStore(tmp_path / "models"), memory_limit=None)) as manager:
        made = Workshop(manager, tmp_path / "models")
        made.publish("1")
        yield made
        made.may_build.set()


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


async def test_a_call_without_the_time_for_a_load_is_told_to_come_back(workshop: Workshop) -> None:
    workshop.may_build.clear()
    with pytest.raises(ModelLoading) as caught:
        async with workshop.handle.use(soon(0.3)):
            pass
    assert caught.value.retry_after > 0
    assert workshop.handle.state is State.LOADING
    workshop.may_build.set()
    async with workshop.handle.use(soon()) as engine:
        assert engine.description.identity.version == "1"
    assert workshop.built == 1, "the load went on"


async def test_an_engine_is_released_after_its_last_reader(workshop: Workshop) -> None:
    workshop.publish("2", "candidate")
    async with workshop.handle.use(soon()) as first:
        await workshop.manager.set_alias("m", "current", "candidate")
        async with workshop.handle.use(soon()) as second:
            assert [each.description.identity.version for each in (first, second)] == ["1", "2"]
        assert workshop.gone == []
        del first
    await until(lambda: workshop.gone == ["1"])
    await workshop.manager.unload("m")
    del second
    await until(lambda: workshop.gone == ["1", "2"])
    assert workshop.manager.memory.in_use == 0


async def test_an_engine_in_a_cycle_goes_even_if_it_was_frozen(workshop: Workshop) -> None:
    async with workshop.handle.use(soon()) as engine:
        engine.itself = engine
        del engine
    process_memory.freeze()
    await workshop.manager.unload("m")
    await until(lambda: workshop.gone == ["1"])


async def test_files_that_are_replaced_while_they_are_read_are_read_again(workshop: Workshop) -> None:
    workshop.may_build.clear()
    loading = asyncio.create_task(workshop.manager.load("m", soon()))
    await until(workshop.building.is_set)  # they are verified by now
    workshop.publish("1", "candidate", weights="others")
    workshop.may_build.set()
    await loading
    assert workshop.handle.loaded
    assert workshop.handle.loaded.description.identity.digest == workshop.manager.store.digest("m")[1]
    assert (workshop.built, workshop.handle.loads, workshop.handle.failures) == (2, 1, 0)
    assert workshop.handle.resident
    assert workshop.manager.memory.in_use == workshop.handle.memory_bytes


async def test_an_operator_who_goes_away_does_not_stop_the_swap(workshop: Workshop) -> None:
    workshop.publish("2", "candidate")
    await workshop.manager.load("m", soon())
    workshop.may_build.clear()
    call = asyncio.create_task(workshop.manager.set_alias("m", "current", "2"))
    await until(lambda: workshop.handle.message == "another version is being loaded")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    workshop.may_build.set()
    await until(lambda: workshop.handle.loaded and workshop.handle.loaded.description.identity.version == "2")
    await until(lambda: workshop.manager.store.aliases("m")["current"] == "2")


@pytest.mark.parametrize("error", [ModelUnavailable("no such engine"), RuntimeError("secret")])
async def test_a_failed_swap_keeps_the_old_and_says_why(workshop: Workshop, error: Exception) -> None:
    workshop.publish("2", "candidate")
    await workshop.manager.load("m", soon())
    workshop.broken = error
    with pytest.raises(type(error)):
        await workshop.manager.set_alias("m", "current", "candidate")
    assert (workshop.handle.state, workshop.handle.failures) == (State.READY, 1)
    assert "another version was not loaded" in workshop.handle.message
    assert "secret" not in workshop.handle.message
    assert workshop.manager.store.aliases("m")["current"] == "1"
    async with workshop.handle.use(soon()) as engine:
        assert engine.description.identity.version == "1"


async def test_what_fails_the_check_is_served_only_where_there_is_nothing_else(workshop: Workshop) -> None:
    workshop.differs = "it answers otherwise"
    await workshop.manager.load("m", soon())
    assert (workshop.handle.state, workshop.handle.message) == (State.READY, "it answers otherwise")
    with pytest.raises(ModelCheckFailed, match="it answers otherwise"):
        await workshop.manager.reload("m")
    assert workshop.built == 2
    await until(lambda: workshop.gone == ["1"])


async def test_a_model_in_use_is_not_evicted(workshop: Workshop) -> None:
    manager = workshop.manager
    manager.memory.limit = 1 << 40
    async with workshop.handle.use(soon()):
        manager.memory.limit = 1
        with pytest.raises(ModelDoesNotFit):
            await manager.reserve_memory("llm", 1 << 20)
        assert workshop.handle.state is State.READY


async def test_nothing_is_evicted_in_vain(workshop: Workshop) -> None:
    async with workshop.handle.use(soon()):
        pass
    memory = workshop.manager.memory
    memory.limit = memory.in_use + 100
    with pytest.raises(ModelDoesNotFit):
        await workshop.manager.reserve_memory("large", memory.limit + 1)
    assert workshop.handle.loaded


async def test_failing_loads_release_what_was_reserved(workshop: Workshop) -> None:
    workshop.broken = RuntimeError("broken")
    with pytest.raises(RuntimeError):
        await workshop.manager.load("m", soon())
    assert workshop.handle.state is State.FAILED
    assert workshop.manager.memory.in_use == 0
    with pytest.raises(ModelUnavailable):
        async with workshop.handle.use(soon()):
            pass
    workshop.broken = None
    await workshop.manager.load("m", soon())
    assert workshop.handle.loaded


@pytest.mark.parametrize(
    "golden", ["", "[]", "{", '{"inputs": [1]}', '{"inputs": ["x"], "outputs": {"test": [1]}}', "[" * 100_000]
)
async def test_golden_inputs_that_cannot_be_replayed_are_named(tmp_path: Path, golden: str) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / GOLDEN).write_text(golden)
    schema = {"golden": {"tolerance": {"test": 0.1}}}
    write_manifest(made, name="m", version="1", licence="MIT", schema=schema)
    artefact = open_artefact(ModelStore(tmp_path / "models").publish(made).parents[1], "m")
    with pytest.raises(ModelUnavailable, match=r"golden\.json cannot be replayed"):
        await difference(Engine(artefact, lambda _: None), artefact)
