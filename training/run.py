"""Carries out a plan: inputs are fetched in the background while artefacts are built one after the other."""

import errno
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from server.domain.errors import QuintetError
from server.models.artefact import write_manifest
from server.models.registry import open_store
from training.errors import FetchFailed, TrainingError
from training.fetch.fetcher import Fetcher
from training.fetch.lock import Input
from training.golden import with_golden
from training.plan import Locations, State, Step
from training.progress import Progress
from training.recipe import Kind, Outcome, Profile, Recipe, Workspace
from training.report import REPORT, licence_line, write_licence

_LEAST_FREE_BYTES = 16 * 1024 * 1024  # with less, a write has probably failed
FETCHES = 2  # inputs at once; with more, the largest would slow down those that a recipe waits for


class Result(NamedTuple):
    """The result of a step: the seconds it took, or why it failed."""

    step: Step
    seconds: float = 0.0
    failure: str = ""


class Run:
    """One run over a plan."""

    def __init__(
        self,
        recipes: Mapping[str, Recipe],
        inputs: Mapping[str, Input],
        locations: Locations,
        fetcher: Fetcher,
        progress: Progress,
        *,
        profile: Profile,
    ) -> None:
        self._recipes = recipes
        self._inputs = inputs
        self._locations = locations
        self._cache = locations.cache
        self._fetcher = fetcher
        self._progress = progress
        self._profile = profile
        self._artefacts: dict[str, Path] = {}

    def carry_out(self, plan: Sequence[Step]) -> list[Result]:
        """Do every step whose inputs and needs are available; one failure does not stop the others."""
        results = {step.recipe.name: Result(step) for step in plan if step.state is State.READY}
        waiting = [step for step in plan if step.state is not State.READY]
        items = {item.name: item for step in waiting for item in step.fetch}
        executor = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
        try:
            fetches = {name: executor.submit(self._fetcher.fetch, item) for name, item in items.items()}
            while waiting:
                step = _next(waiting, fetches)
                waiting.remove(step)
                results[step.recipe.name] = self._attempt(step, fetches, results)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
        return [results[step.recipe.name] for step in plan]

    def _attempt(self, step: Step, fetches: Mapping[str, Future[None]], results: Mapping[str, Result]) -> Result:
        begun = time.monotonic()
        recipe = step.recipe
        try:
            for item in step.fetch:
                fetches[item.name].result()
            for need in recipe.needs:
                if need in results and results[need].failure:
                    raise FetchFailed(f"it needs {need}, which failed; see there")
            if step.state is State.MISSING:
                self._build(step)
            folder = self._artefacts[recipe.name] = self._cache.artefact(recipe.name, step.digest)
            if step.publish:
                self._publish(step, folder)
        except TrainingError as error:
            return Result(step, failure=str(error))
        except QuintetError as error:
            return Result(step, failure=f"{error.message}. Then run it again")
        except Exception as error:
            if full := full_disk(error, (self._cache.root, self._locations.models)):
                return Result(step, failure=full)
            if isinstance(error, OSError):
                return Result(step, failure=describe(error))
            raise
        seconds = time.monotonic() - begun
        if recipe.kind is not Kind.REPORT and (step.publish or step.state is State.MISSING):
            done = "published" if step.publish else "made"
            self._progress.say(f"{recipe.name} {step.version}: {done} in {seconds:.1f} s")
        return Result(step, seconds)

    def _build(self, step: Step) -> None:
        recipe, name = step.recipe, step.recipe.name
        inputs = self._all_inputs(recipe)
        self._progress.say(f"{name}: making it, about {recipe.expected_seconds(self._profile):.0f} s")
        with self._cache.building(name, step.digest) as folder:
            workspace = Workspace(
                name,
                folder,
                self._cache.intermediate(name),
                self._profile,
                self._progress,
                input=self._files,
                artefact=self._artefacts.__getitem__,
            )
            outcome: Outcome = _module(recipe).build(workspace)
            write_licence(folder, inputs)
            for item in inputs:
                for file in item.files:
                    if file.is_licence and self._cache.has(file):
                        workspace.link(self._cache.verified(file), f"licences/{item.name}/{file.path}")
            write_manifest(
                folder,
                name=name,
                version=step.version,
                licence=licence_line(inputs),
                libraries=recipe.versions(),
                inputs={f"{item.name}/{file.path}": f"sha256:{file.sha256}" for item in inputs for file in item.files},
                metrics=outcome.metrics,
                schema=outcome.schema,
            )

    def _publish(self, step: Step, folder: Path) -> None:
        recipe, models = step.recipe, self._locations.models
        if recipe.kind is Kind.REPORT:
            self._progress.say(f"{recipe.name}: see {folder / REPORT}")
        elif recipe.kind is Kind.COLLECTION:
            _module(recipe).install(folder, self._locations.index, models)
        else:
            with with_golden(folder, models) as finished:
                open_store(models, self._locations.registry_uri).publish(finished)

    def _files(self, name: str) -> dict[str, Path]:
        """The verified files of an input, without licences."""
        return {file.path: self._cache.verified(file) for file in self._inputs[name].files if not file.is_licence}

    def _all_inputs(self, recipe: Recipe) -> list[Input]:
        """The inputs of a recipe and of what it needs, each once."""
        found = {name: self._inputs[name] for name in recipe.inputs}
        for need in recipe.needs:
            found |= {item.name: item for item in self._all_inputs(self._recipes[need])}
        return list(found.values())


def _next(waiting: Sequence[Step], fetches: Mapping[str, Future[None]]) -> Step:
    """The first step whose inputs and needs are there; wait until one is."""
    undone = {step.recipe.name for step in waiting}
    while True:
        for step in waiting:
            if all(fetches[item.name].done() for item in step.fetch) and undone.isdisjoint(step.recipe.needs):
                return step
        wait([future for future in fetches.values() if not future.done()], return_when=FIRST_COMPLETED)


def _module(recipe: Recipe) -> ModuleType:
    """Has `build(workspace)`; a collection's module has `install(folder, index, models)`, too."""
    return import_module(f"training.recipes.{recipe.module}")


def describe(error: OSError) -> str:
    """An error of the operating system, with its file and what to do."""
    file = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{file}. Make room or correct the path, then run it again"


def full_disk(error: BaseException, folders: Iterable[Path]) -> str:
    """What to do if an error comes from a full disk, else "". Libraries hide it behind errors of their own."""
    for folder in (*folders, Path(tempfile.gettempdir())):
        existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        if shutil.disk_usage(existing).free < _LEAST_FREE_BYTES:
            return f"the disk of {folder} is full. Make room, then run it again: it goes on where it stopped"
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return describe(error)
    return ""
