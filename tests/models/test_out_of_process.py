"""Engines with a process of their own: they load beside the others, and count what their process takes."""

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from server.domain.errors import ModelUnavailable
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.models import following, process_memory
from server.models.artefact import Artefact, write_manifest
from server.models.handle import State
from server.models.manager import ModelManager
from server.models.spec import ModelSpec
from server.models.store import ModelStore
from tests.waiting import is_alive, until

TASK = ModelTask.CLASSIFICATION


class Inside:
    """An engine of this process."""

    def __init__(self, artefact: Artefact) -> None:
        identity = ModelIdentity(artefact.manifest.name, artefact.manifest.version, artefact.digest)
        self.description = ModelDescription(identity, ModelTask.CLASSIFICATION, "test")


class Outside(Inside):
    """An engine whose process waits for the end of its input."""

    def __init__(self, artefact: Artefact) -> None:
        super().__init__(artefact)
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout
        self._process.stdout.readline()

    is_lost = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


async def _no_difference(engine: object, artefact: Artefact) -> str:
    return ""


def _add(models: Path, name: str) -> None:
    made = models.parent / "made" / name
    made.mkdir(parents=True)
    (made / "weights").write_text(name)
    write_manifest(made, name=name, version="1", licence="MIT")
    ModelStore(models).publish(made)


async def test_it_loads_beside_the_others(tmp_path: Path) -> None:
    for name in ("inside", "outside"):
        _add(tmp_path / "models", name)
    may_build = threading.Event()

    def inside(artefact: Artefact) -> Inside:
        assert may_build.wait(30)
        return Inside(artefact)

    async with aclosing(ModelManager(ModelStore(tmp_path / "models"), memory_limit=1 << 40)) as manager:
        held = manager.add(ModelSpec("inside", TASK, lambda: inside, check=_no_difference))
        outside = manager.add(ModelSpec("outside", TASK, lambda: Outside, check=_no_difference, out_of_process=True))
        loading = asyncio.create_task(manager.preload())
        await until(lambda: outside.state is State.READY)
        assert held.state is State.LOADING
        assert outside.resident
        assert outside.loaded
        pid = outside.loaded.pid
        assert 0 < outside.memory_bytes <= process_memory.peak_bytes(pid)
        assert manager.memory.in_use >= outside.memory_bytes
        may_build.set()
        await loading
        assert held.resident
        await manager.unload("outside")
        assert not is_alive(pid)
        assert manager.memory.in_use == held.memory_bytes


async def test_one_whose_process_is_lost_is_loaded_anew_and_fails_until_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(following, "_FIRST_RETRY_SECONDS", 0.2)
    _add(tmp_path / "models", "outside")
    is_broken = False

    def make(artefact: Artefact) -> Outside:
        if is_broken:
            raise ModelUnavailable("it cannot be started")
        return Outside(artefact)

    async with aclosing(ModelManager(ModelStore(tmp_path / "models"), memory_limit=None)) as manager:
        outside = manager.add(ModelSpec("outside", TASK, lambda: make, check=_no_difference, out_of_process=True))
        manager.start()
        await until(lambda: outside.state is State.READY)
        assert outside.loaded
        pid, is_broken = outside.loaded.pid, True
        outside.loaded.is_lost = True
        await until(lambda: outside.state is State.FAILED)
        assert (outside.trouble(), is_alive(pid)) == ("it cannot be started", False)
        is_broken = False
        await until(lambda: outside.state is State.READY)


async def test_after_the_start_loading_steps_back_and_dropping_does_not(tmp_path: Path) -> None:
    priorities: list[int] = []

    def note_priority() -> None:
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    class Noting(Inside):
        def __del__(self) -> None:
            note_priority()

    def note(artefact: Artefact) -> Inside:
        note_priority()
        return Noting(artefact)

    _add(tmp_path / "models", "inside")
    async with aclosing(ModelManager(ModelStore(tmp_path / "models"), memory_limit=None)) as manager:
        manager.add(ModelSpec("inside", TASK, lambda: note, check=_no_difference))
        await manager.preload()
        await manager.reload("inside")
        await manager.unload("inside")
    at_start, later, *drops = priorities
    assert at_start < later
    assert drops == [at_start, at_start], "it holds the GIL, so everybody would wait for its turn"
