"""A registry is mirrored beside serving, each model by itself: the fault of one delays no other.

It is asked every 10 s. While it is away, hangs, or names what cannot be used, what is on disk is served.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from functools import partial

from server.domain.errors import RegistryFailed
from server.domain.supervision import supervised
from server.domain.threads import on_thread
from server.models.store import ModelStore, VersionRefused

log = logging.getLogger(__name__)

_ASK_SECONDS = 10.0  # between questions to the registry
_ANSWER_SECONDS = 5.0  # then the registry counts as away
_NO_ANSWER = f"the model registry has not answered within {_ANSWER_SECONDS:g} s"


class Mirror:
    """Mirrors the registry of `store`, if it has one, from start() to stop()."""

    def __init__(self, store: ModelStore) -> None:
        self.refused: dict[str, VersionRefused] = {}  # what the registry names and cannot be used, by model
        self._store = store
        self._away: dict[str, str] = {}  # why the registry cannot be asked, by model
        self._questions: dict[str, _Question] = {}
        self._may_ask = asyncio.Event()  # for models that are on disk
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def has_registry(self) -> bool:
        return self._store.has_registry

    @property
    def away(self) -> str:
        """Why the registry cannot be asked; empty if it can."""
        return next(iter(self._away.values()), "")

    def start(self, names: Iterable[str], is_here: Callable[[str], bool]) -> None:
        """Begin to ask for the models that are not on disk, and for others once ask_for_all() is called."""
        for name in names if self.has_registry else ():
            self._questions[name] = _Question()
            follow = partial(self._follow, name, is_urgent=not is_here(name))
            self._tasks.append(supervised(f"registry: {name}", follow))

    def ask_for_all(self) -> None:
        """Ask for the models that are on disk, too, now that they are loaded."""
        self._may_ask.set()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

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
            if not (answer.done() or question.is_fetching):
                self._set_away(name, _NO_ANSWER)
            if name in self._away or not await answer:
                raise RegistryFailed(self._away.get(name, _NO_ANSWER))
            if refused := self.refused.get(name):
                raise refused

    async def _follow(self, name: str, *, is_urgent: bool) -> None:
        question = self._questions[name]
        if not is_urgent:
            await self._may_ask.wait()
        await on_thread("registry", self._store.prepare)
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
        asking = asyncio.create_task(on_thread("registry", partial(self._store.look_up, name)))
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
                await on_thread("registry", partial(self._store.fetch, version))
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
        before = self.refused.pop(name, None)
        if refused:
            self.refused[name] = refused
            if before is None or before.message != refused.message:
                log.error("%s", refused.message)


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
