"""What is made of models: made when they are ready, again when one is replaced, and again after a failure."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.domain.errors import ModelLoading, ModelUnavailable
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.models import following
from server.models.artefact import Artefact, write_manifest
from server.models.handle import Handle, Resident, State
from server.models.manager import ModelManager
from server.models.spec import ModelSettings, ModelSpec
from server.models.store import ModelStore
from tests.waiting import until


class Engine:
    """Keeps the artefact's identity."""

    def __init__(self, artefact: Artefact) -> None:
        identity = ModelIdentity(artefact.manifest.name, artefact.manifest.version, artefact.digest)
        self.description = ModelDescription(identity, ModelTask.EMBEDDING, "test")


@dataclass
class Index:
    """Made of an engine; tells when it is closed."""

    version: str
    closed: bool = False
    is_stuck: bool = False

    async def close(self) -> None:
        if self.is_stuck:
            raise OSError("the disk is broken")
        self.closed = True


@dataclass
class Workshop:
    """A manager with the model "m", an index made of it, and an answer made of the index and a chat model."""

    manager: ModelManager
    models: Path
    chat: Handle[str]
    made: list[Index] = field(default_factory=list)
    broken: bool = False
    preload: bool = True

    def __post_init__(self) -> None:
        settings = ModelSettings(preload=self.preload)
        spec = ModelSpec("m", ModelTask.EMBEDDING, lambda: Engine, settings, check=_no_difference)
        self.model = self.manager.add(spec)
        self.index = self.manager.derive("index", self._make, depends_on=(self.model,))
        self.answer = self.manager.derive("answer", _answer, depends_on=(self.index, self.chat))

    async def _make(self, engine: Engine) -> Index:
        if self.broken:
            raise ModelUnavailable("the disk is broken")
        self.made.append(Index(engine.description.identity.version))
        return self.made[-1]

    async def publish(self, version: str) -> None:
        made = self.models.parent / "made" / version
        made.mkdir(parents=True)
        (made / "weights").write_text(version)
        write_manifest(made, name="m", version=version, licence="MIT")
        await asyncio.to_thread(ModelStore(self.models).publish, made)


async def _no_difference(engine: Engine, artefact: Artefact) -> str:
    return ""


async def _answer(index: Index, chat: str) -> str:
    return f"{chat} of {index.version}"


@pytest.fixture
async def workshop(tmp_path: Path) -> AsyncIterator[Workshop]:
    store = ModelStore(tmp_path / "models")
    async with aclosing(ModelManager(store, memory_limit=None)) as manager:
        chat: Handle[str] = Handle("chat", manager.changed)
        yield Workshop(manager, tmp_path / "models", chat)


async def test_it_is_made_when_all_are_ready_and_closed_at_the_end(workshop: Workshop) -> None:
    await workshop.publish("1")
    workshop.manager.start()
    await until(lambda: workshop.index.state is State.READY)
    with pytest.raises(ModelLoading):
        workshop.answer.get()
    workshop.chat.install(Resident("answer"))
    await workshop.manager.loaded()
    assert workshop.answer.get() == "answer of 1"
    assert [index.closed for index in workshop.made] == [False]


async def test_it_heals_when_a_model_that_was_missing_is_published(workshop: Workshop) -> None:
    workshop.chat.install(Resident("answer"))
    workshop.manager.start()
    await workshop.manager.loaded()
    assert (workshop.index.state, workshop.answer.state) == (State.FAILED, State.FAILED)
    assert workshop.index.message == workshop.answer.message == workshop.model.message
    with pytest.raises(ModelUnavailable):
        workshop.index.get()
    await workshop.publish("1")
    await workshop.manager.reload("m")
    await until(lambda: workshop.answer.state is State.READY)
    assert workshop.answer.get() == "answer of 1"


async def test_it_is_made_again_of_what_replaces_a_model_and_only_then(workshop: Workshop) -> None:
    workshop.chat.install(Resident("answer"))
    await workshop.publish("1")
    workshop.manager.start()
    await workshop.manager.loaded()
    await workshop.manager.unload("m")
    await workshop.manager.load("m", asyncio.get_running_loop().time() + 10)
    await asyncio.sleep(0)
    assert len(workshop.made) == 1, "the same version was loaded again"
    await workshop.publish("2")
    await workshop.manager.reload("m")
    await until(lambda: workshop.answer.loaded == "answer of 2")
    assert [(index.version, index.closed) for index in workshop.made] == [("1", True), ("2", False)]


async def test_what_could_not_be_made_is_tried_again_with_the_next_change(workshop: Workshop) -> None:
    workshop.chat.install(Resident("answer"))
    workshop.broken = True
    await workshop.publish("1")
    workshop.manager.start()
    await workshop.manager.loaded()
    assert (workshop.index.state, workshop.index.message) == (State.FAILED, "the disk is broken")
    assert workshop.answer.message == "the disk is broken"
    workshop.broken = False
    await workshop.manager.reload("m")
    await until(lambda: workshop.answer.state is State.READY)


async def test_what_could_not_be_made_is_tried_again_by_itself(workshop: Workshop) -> None:
    workshop.chat.install(Resident("answer"))
    workshop.broken = True
    await workshop.publish("1")
    workshop.manager.start()
    await workshop.manager.loaded()
    assert workshop.index.state is State.FAILED
    workshop.broken = False  # nothing else changes
    await until(lambda: workshop.answer.state is State.READY)


async def test_an_index_that_cannot_be_closed_is_replaced_all_the_same(workshop: Workshop) -> None:
    workshop.chat.install(Resident("answer"))
    await workshop.publish("1")
    workshop.manager.start()
    await until(lambda: workshop.answer.state is State.READY)
    workshop.made[0].is_stuck = True
    await workshop.publish("2")
    await until(lambda: workshop.answer.loaded == "answer of 2")


async def test_a_model_that_is_not_preloaded_is_loaded_for_it(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    async with aclosing(ModelManager(store, memory_limit=None)) as manager:
        workshop = Workshop(manager, tmp_path / "models", Handle("chat", manager.changed), preload=False)
        await workshop.publish("1")
        workshop.chat.install(Resident("answer"))
        manager.start()
        await manager.loaded()
        assert workshop.answer.get() == "answer of 1"


async def test_a_model_that_does_not_fit_fails_what_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_FIRST_RETRY_SECONDS", 0.2)
    store = ModelStore(tmp_path / "models")
    async with aclosing(ModelManager(store, memory_limit=0)) as manager:
        workshop = Workshop(manager, tmp_path / "models", Handle("chat", manager.changed))
        await workshop.publish("1")
        manager.start()
        await manager.loaded()
        assert (workshop.model.state, workshop.index.state) == (State.UNLOADED, State.FAILED)
        assert workshop.index.message == workshop.model.message
        assert "of the memory limit of 0" in workshop.index.message
        manager.memory.limit = None  # nothing asks for the model
        await until(lambda: workshop.index.state is State.READY)
