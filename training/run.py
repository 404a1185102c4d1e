"""Carrying out a plan: inputs are fetched in the background while artefacts are made, one after the other."""

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from server.domain.errors import QuintetError
from server.models.artefact import write_manifest
from training.errors import FetchFailed, TrainingError
from training.fetch.fetcher import Fetcher
from training.fetch.lock import Input
from training.golden import with_golden
from training.plan import Places, State, Step, is_whole
from training.progress import Progress
from training.recipe import Kind, Outcome, Profile, Recipe, Workshop
from training.reports.report import REPORT, licence_line, write_licence

FETCHES = 2  # inputs at once; with more, the largest would slow down those that are waited for


class Module(Protocol):
    """What a recipe's module offers."""

    def build(self, workshop: Workshop) -> Outcome:
        """Fill the workshop's folder."""
        ...


class CollectionModule(Module, Protocol):
    """What the module of a collection offers besides."""

    def install(self, folder: Path, index: Path, models: Path) -> None:
        """Make what was built a collection below `index`; the published models are below `models`."""
        ...


@dataclass(frozen=True)
class Result:
    """What became of a step: the seconds it took, or why it failed."""

    step: Step
    seconds: float = 0.0
    failure: str = ""


class Run:
    """One run over a plan."""

    def __init__(
        self,
        recipes: Mapping[str, Recipe],
        inputs: Mapping[str, Input],
        places: Places,
        fetcher: Fetcher,
        progress: Progress,
        *,
        profile: Profile,
    ) -> None:
        self._recipes = recipes
        self._inputs = inputs
        self._places = places
        self._fetcher = fetcher
        self._progress = progress
        self._profile = profile
        self._made: dict[str, Path] = {}

    def carry_out(self, plan: Sequence[Step]) -> list[Result]:
        """Do every step whose inputs and needs can be had; one failure does not stop the others."""
        results = {step.recipe.name: Result(step) for step in plan if step.state is State.READY}
        waiting = [step for step in plan if step.state is not State.READY]
        executor = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
        try:
            fetches = {item.name: executor.submit(self._fetcher.fetch, item) for item in _distinct(waiting)}
            while waiting:
                step = self._next(waiting, fetches)
                waiting.remove(step)
                result = self._attempt(step, fetches, results)
                results[step.recipe.name] = result
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
        return [results[step.recipe.name] for step in plan]

    def _next(self, waiting: Sequence[Step], fetches: Mapping[str, Future[None]]) -> Step:
        """The first step that has all it needs; wait if there is none."""
        undone = {step.recipe.name for step in waiting}
        while True:
            for step in waiting:
                pending = [item for item in step.fetch if not fetches[item.name].done()]
                if not pending and not undone.intersection(step.recipe.needs):
                    return step
            wait([future for future in fetches.values() if not future.done()], return_when=FIRST_COMPLETED)

    def _attempt(self, step: Step, fetches: Mapping[str, Future[None]], results: Mapping[str, Result]) -> Result:
        begun = time.monotonic()
        name = step.recipe.name
        try:
            for item in step.fetch:
                fetches[item.name].result()
            for need in step.recipe.needs:
                if need in results and results[need].failure:
                    raise FetchFailed(f"it is made from {need}, which failed; see there")
            folder = self._places.cache.artefact(name, step.digest)
            if step.state is State.MISSING:
                self._build(step)
            self._made[name] = folder
            if step.publish:
                self._publish(step, folder)
        except TrainingError as error:
            return Result(step, failure=str(error))
        except QuintetError as error:
            return Result(step, failure=f"{error.message}. Then run it again")
        except OSError as error:
            return Result(step, failure=f"{describe(error)}. Make room or correct the path, then run it again")
        seconds = time.monotonic() - begun
        if step.recipe.kind is not Kind.REPORT and (step.publish or step.state is State.MISSING):
            self._progress.say(f"{name} {step.version}: {'published' if step.publish else 'made'} in {seconds:.1f} s")
        return Result(step, seconds)

    def _build(self, step: Step) -> None:
        recipe = step.recipe
        inputs = self._all_inputs(recipe)
        with self._places.cache.building(recipe.name, step.digest) as folder:
            self._progress.say(f"{recipe.name}: making it, about {recipe.expected_seconds(self._profile):.0f} s")
            kept = self._places.cache.kept(recipe.name)
            workshop = Workshop(
                folder, self._profile, self._progress, recipe.name, kept, self._files, self._made.__getitem__
            )
            module = cast(Module, import_module(f"training.recipes.{recipe.module}"))
            outcome = module.build(workshop)
            self._place_licences(workshop, inputs)
            write_manifest(
                folder,
                name=recipe.name,
                version=step.version,
                licence=licence_line(inputs),
                libraries=recipe.versions(),
                inputs={f"{item.name}/{c.path}": f"sha256:{c.sha256}" for item in inputs for c in item.contents},
                metrics=outcome.metrics,
                schema=outcome.schema,
            )

    def _place_licences(self, workshop: Workshop, inputs: Sequence[Input]) -> None:
        """MetadataIndex and authors of all inputs, and the texts that came with them."""
        write_licence(workshop.folder, inputs)
        for item in inputs:
            for content in item.contents:
                if content.is_licence and self._places.cache.has(content):
                    workshop.place(self._places.cache.verified(content), f"licences/{item.name}/{content.path}")

    def _publish(self, step: Step, folder: Path) -> None:
        if step.recipe.kind is Kind.REPORT:
            self._progress.say(f"{step.recipe.name}: see {folder / REPORT}")
        elif step.recipe.kind is Kind.MODEL:
            published = self._places.models / step.recipe.name / step.version
            if published.exists() and not is_whole(published, check=True):
                shutil.rmtree(published)  # publishing keeps what has the right manifest, damaged or not
            with with_golden(folder, self._places.models) as finished:
                self._places.registry().publish(finished)
        else:
            module = cast(CollectionModule, import_module(f"training.recipes.{step.recipe.module}"))
            module.install(folder, self._places.index, self._places.models)

    def _files(self, name: str) -> dict[str, Path]:
        """The verified files of an input."""
        contents = [content for content in self._inputs[name].contents if not content.is_licence]
        return {content.path: self._places.cache.verified(content) for content in contents}

    def _all_inputs(self, recipe: Recipe) -> list[Input]:
        """Its own inputs and those of what it is made from, each once."""
        found = {name: self._inputs[name] for name in recipe.inputs}
        for need in recipe.needs:
            found |= {item.name: item for item in self._all_inputs(self._recipes[need])}
        return list(found.values())


def describe(error: OSError) -> str:
    """An error of the system, with its file."""
    return f"{error.strerror or error} ({error.filename})" if error.filename else str(error.strerror or error)


def _distinct(steps: Sequence[Step]) -> list[Input]:
    return list({item.name: item for step in steps for item in step.fetch}.values())
