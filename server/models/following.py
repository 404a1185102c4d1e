"""Models follow what is published, and heal: each by itself, so that the fault of one delays no other.

On disk, a new or repaired version is noticed within 2 s. A registry is asked every 10 s, beside serving: what is on
disk is served while the registry is away, hangs, or has something that cannot be used. A model that failed is tried
again after 5 s, 10 s and so on up to 5 minutes.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from server.domain.daemon_thread import on_daemon_thread
from server.domain.errors import RegistryFailed
from server.domain.supervision import supervised
from server.models.handle import Handle, State, Wanted, explain
from server.models.loading import Loader
from server.models.spec import OutOfProcess
from server.models.store import Mark, ModelStore, VersionRefused
from server.models.swap import Swapper

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # between looks at the disk
_ASK_SECONDS = 10.0  # between questions to the registry
_ANSWER_SECONDS = 5.0  # then the registry counts as away
_NO_ANSWER = f"the model registry has not answered within {_ANSWER_SECONDS:g} s"
_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 5.0, 300.0


class Follower:
    """Follows the models of `handles`, which have a spec each, from start() to stop()."""

    def __init__(self, handles: Mapping[str, Handle[Any]], store: ModelStore, loader: Loader, swapper: Swapper) -> None:
        self.needed: set[Handle[Any]] = set()  # something is made of them
        self._away: dict[str, str] = {}  # why the registry cannot be asked, by model
        self._handles, self._store, self._loader, self._swapper = handles, store, loader, swapper
        self._marks: dict[str, Mark | None] = {}
        self._noted: dict[str, tuple[Mark | None, int]] = {}  # mark and revision for which `wanted` was found
        self._retries: dict[str, tuple[float, float]] = {}  # delay, and time.monotonic() of the next one
        self._refused: dict[str, VersionRefused] = {}  # what the registry names and cannot be used
        self._questions: dict[str, _Question] = {}
        self._may_ask = asyncio.Event()  # for models that are on disk
        self._following: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def has_registry(self) -> bool:
        return self._store.has_registry

    @property
    def away(self) -> str:
        """Why the registry cannot be asked; empty if it can."""
        return next(iter(self._away.values()), "")

    async def start(self) -> None:
        """Begin to follow. Changes from now on are noticed. Models that are not on disk are asked for at once."""
        self._marks = await self._look()
        self._tasks.append(supervised("models on disk", self._follow_disk))
        if self.has_registry:
            for name in self._versioned:
                self._questions[name] = _Question()
                self._tasks.append(supervised(f"registry: {name}", partial(self._follow_registry, name)))

    def ask_for_all(self) -> None:
        """Ask the registry for the models that are on disk, too, now that they are loaded."""
        self._may_ask.set()

    async def stop(self) -> None:
        tasks = [*self._tasks, *self._following.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def is_here(self, name: str) -> bool:
        """Whether a version was on disk at the latest look."""
        return self._marks.get(name) is not None

    async def first_answer(self, name: str) -> None:
        """Return once the registry was asked for the model, or counts as away; at once without a registry."""
        if question := self._questions.get(name):
            await question.asked.wait()

    async def ask_now(self, name: str) -> None:
        """Ask the registry and mirror what it names. Raises RegistryFailed: it is away, or VersionRefused."""
        if question := self._questions.get(name):
            self._store.recheck(name)
            self._may_ask.set()
            answer = question.repeat()
            await asyncio.wait({answer}, timeout=_ANSWER_SECONDS)
            if not (answer.done() or question.is_fetching) or not await answer:
                raise RegistryFailed(self._away.get(name) or _NO_ANSWER)
            if refused := self._refused.get(name):
                raise refused

    def warnings(self) -> list[str]:
        """What an operator should know although models serve."""
        found = [self.away] if self.away else []
        return found + [
            f'model "{name}": version {wanted.version} is not served: {wanted.why}'
            for name, handle in sorted(self._handles.items())
            if (wanted := handle.wanted)
        ]

    # ------------------------------------------------------------ the disk

    @property
    def _versioned(self) -> list[str]:
        return [name for name, handle in self._handles.items() if handle.spec and handle.spec.has_artefact]

    async def _look(self) -> dict[str, Mark | None]:
        names = self._versioned
        return await self._loader.on("watcher", lambda: {name: self._store.mark(name) for name in names})

    async def _follow_disk(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            seen = await self._look()
            for name, handle in self._handles.items():
                is_changed = seen.get(name) != self._marks.get(name)
                is_lost = isinstance(handle.loaded, OutOfProcess) and handle.loaded.is_lost
                if (is_changed or is_lost or self._is_due(handle)) and name not in self._following:
                    self._marks[name] = seen.get(name)  # what changes while it is followed is followed after that
                    self._following[name] = task = asyncio.create_task(self.follow(name))
                    task.add_done_callback(partial(self._forget, name))
            for name in self._versioned:
                await self._note_wanted(self._handles[name], seen[name])

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        del self._following[name]
        if not task.cancelled() and (error := task.exception()):
            log.error("model %s could not be followed", name, exc_info=error)

    def _is_waiting(self, handle: Handle[Any]) -> bool:
        """Whether something is to be made of it, for which it did not fit into memory."""
        return handle.state is State.UNLOADED and bool(handle.message) and handle in self.needed

    def _is_due(self, handle: Handle[Any]) -> bool:
        """Whether a model that could not be loaded is to be tried again now."""
        if handle.state is not State.FAILED and not self._is_waiting(handle):
            if handle.state in (State.READY, State.UNLOADED):
                self._retries.pop(handle.name, None)
            return False
        now = time.monotonic()
        delay, due = self._retries.setdefault(handle.name, (_FIRST_RETRY_SECONDS, now + _FIRST_RETRY_SECONDS))
        if now < due:
            return False
        delay = min(2 * delay, _LONGEST_RETRY_SECONDS)
        self._retries[handle.name] = (delay, now + delay)
        return True

    async def follow(self, name: str) -> None:
        """Serve what `current` names if that is another version or other files than what is served, or if the engine's
        process is lost.
        """
        handle = self._handles[name]
        async with handle.lock:
            if handle.state is State.UNLOADED and not self._is_waiting(handle):
                return
            try:
                if isinstance(handle.loaded, OutOfProcess) and handle.loaded.is_lost:
                    await self._loader.evict(handle)
                served = handle.description.identity if handle.description else None
                if served is None or (served.version, served.digest) != await self._current(name):
                    await self._swapper.serve_current(handle)
            except Exception as error:
                explain(name, error)  # the handle says why, and the old engine stays

    async def _current(self, name: str) -> tuple[str, str]:
        return await self._loader.on("watcher", partial(self._store.digest, name))

    async def _note_wanted(self, handle: Handle[Any], mark: Mark | None) -> None:
        """Let the handle say which version should be served, if it is another one."""
        name = handle.name
        if self._noted.get(name) != (mark, handle.revision):
            wanted: Wanted | None = None
            version, digest = await self._current(name)
            served = handle.description.identity if handle.description else None
            is_other = handle.failed if served is None else (served.version, served.digest) != (version, digest)
            if refused := self._refused.get(name):
                wanted = Wanted(refused.version, refused.message)
            elif version and is_other:
                wanted = Wanted(version, handle.message)
            handle.want(wanted)
            self._noted[name] = (mark, handle.revision)

    # ------------------------------------------------------------ the registry

    async def _follow_registry(self, name: str) -> None:
        question = self._questions[name]
        if self.is_here(name):
            await self._may_ask.wait()
        await on_daemon_thread("registry", self._store.prepare)
        while True:
            question.begin()
            answered = False
            try:
                answered = await self._ask(name, question)
            finally:
                question.end(answered=answered)
            await question.wait(_ASK_SECONDS)

    async def _ask(self, name: str, question: "_Question") -> bool:
        """Ask for the aliases and mirror the versions that they mean. False if the registry is away."""
        asking = asyncio.create_task(on_daemon_thread("registry", partial(self._store.look_up, name)))
        done, _ = await asyncio.wait({asking}, timeout=_ANSWER_SECONDS)
        if not done:
            self._set_away(name, _NO_ANSWER)
            question.give_up()
        try:
            named = await asking
        except VersionRefused as error:
            self._set_away(name, "")
            self._set_refused(name, error)
            return True
        except RegistryFailed as error:
            self._set_away(name, error.message, error.__cause__)
            return False
        except Exception as error:  # whatever the registry's client raises
            self._set_away(name, "the model registry answers with something else than it should", error)
            return False
        self._set_away(name, "")
        question.is_fetching = True
        refused = None
        for version in named:
            try:
                await on_daemon_thread("registry", partial(self._store.fetch, version))
            except VersionRefused as error:
                refused = refused or error
        self._set_refused(name, refused)
        return True

    def _set_away(self, name: str, why: str, cause: BaseException | None = None) -> None:
        """Keep why the registry cannot be asked for a model; the log says once that it cannot be asked."""
        before = self.away
        self._away.pop(name, None)
        if why:
            self._away[name] = why
        if self.away and not before:
            log.warning("%s; the versions on disk are served%s", why, f": {cause}" if cause else "")
        elif before and not self.away:
            log.info("the model registry answers again")

    def _set_refused(self, name: str, refused: VersionRefused | None) -> None:
        before = self._refused.pop(name, None)
        if refused:
            self._refused[name] = refused
            if before is None or before.message != refused.message:
                log.error("%s", refused.message)
        if (before and before.message) != (refused and refused.message):
            self._noted.pop(name, None)


class _Question:
    """When a registry is asked for one model, and what waits for its answer."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()  # and answered or given up, at least once
        self.is_fetching = False  # it was answered, and versions are fetched
        self._now = asyncio.Event()
        self._hangs = False
        self._next: list[asyncio.Future[bool]] = []
        self._running: list[asyncio.Future[bool]] = []

    def repeat(self) -> "asyncio.Future[bool]":
        """Ask at once, after a question that is under way. False if the registry is away."""
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._hangs:
            answered.set_result(False)
        else:
            self._next.append(answered)
            self._now.set()
        return answered

    def begin(self) -> None:
        self._running, self._next = self._next, []
        self._now.clear()

    def give_up(self) -> None:
        """The registry hangs: nothing waits for it any more."""
        self._hangs = True
        self._running += self._next
        self._next = []
        self._release(answered=False)

    def end(self, *, answered: bool) -> None:
        self._hangs = self.is_fetching = False
        self._release(answered=answered)

    async def wait(self, seconds: float) -> None:
        """Return after that time, or at once if repeat() is called."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._now.wait(), seconds)

    def _release(self, *, answered: bool) -> None:
        self.asked.set()
        for each in self._running:
            if not each.done():
                each.set_result(answered)
        self._running = []
