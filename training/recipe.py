"""How an artefact is described before it is made, and what its maker gets to work with.

A recipe's digest covers everything that decides the result: the inputs' digests, the code, the profile and the
versions of the libraries. An artefact with the same digest is therefore the same artefact and is not made again.
"""

import ast
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from training.fetch.lock import Input
from training.progress import Progress, Task

Profile = Literal["fast", "long"]


class Kind(Enum):
    """What becomes of the result."""

    MODEL = "model"  # published below models/
    COLLECTION = "collection"  # installed below index/, unless one of that name is there
    REPORT = "report"  # stays in the cache; its report.md is what counts


@dataclass(frozen=True)
class Recipe:
    """An artefact: `build` of training.`module` makes it from `inputs` of the lock and from what it `needs`."""

    name: str
    module: str
    inputs: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    code: tuple[str, ...] = ()  # further modules that decide the result
    libraries: tuple[str, ...] = ()  # distributions whose versions decide the result
    seconds: Mapping[Profile, float] | float = 1.0  # expected, on two cores
    key_metric: str = ""
    kind: Kind = Kind.MODEL
    by_name: bool = False  # made only if it is asked for by name

    def expected_seconds(self, profile: Profile) -> float:
        """How long building takes on two cores."""
        return self.seconds if isinstance(self.seconds, (int, float)) else self.seconds[profile]

    @property
    def has_profiles(self) -> bool:
        """Whether the profile makes a difference."""
        return not isinstance(self.seconds, (int, float))

    def versions(self) -> dict[str, str]:
        """The libraries with their installed versions."""
        return {name: _version(name) for name in self.libraries}


@functools.cache
def _version(library: str) -> str:
    return importlib.metadata.version(library)


@dataclass(frozen=True)
class Outcome:
    """What a build says of its result: the manifest's schema and metrics."""

    schema: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Workshop:
    """What a build gets: an empty `folder` to fill, its inputs, and what it needs."""

    folder: Path
    profile: Profile
    progress: Progress
    label: str
    kept: Path  # a folder for intermediate results that the next attempt may use
    _input: Callable[[str], dict[str, Path]]
    _made: Callable[[str], Path]

    def input(self, name: str) -> dict[str, Path]:
        """The verified files of an input by their paths in the lock, without licences. They are shared: only read."""
        return self._input(name)

    def made(self, name: str) -> Path:
        """The folder of a recipe that this one needs."""
        return self._made(name)

    def place(self, source: Path, path: str) -> Path:
        """Put a file into the folder without copying it where the disk allows that."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
        return target

    def steps(self, total: int) -> AbstractContextManager[Task]:
        """Show progress over this many steps."""
        return self.progress.task(self.label, total, "steps")


def digest_of(name: str, recipes: Mapping[str, Recipe], inputs: Mapping[str, Input], profile: Profile) -> str:
    """The digest of a recipe. Raises PackageNotFoundError for a library that is not installed."""
    recipe = recipes[name]
    decisive = {
        "name": name,
        "inputs": {key: [[item.path, item.sha256] for item in inputs[key].contents] for key in recipe.inputs},
        "needs": {need: digest_of(need, recipes, inputs, profile) for need in recipe.needs},
        "code": {module: _code_digest(module) for module in (f"training.recipes.{recipe.module}", *recipe.code)},
        "libraries": recipe.versions(),
        "profile": profile if recipe.has_profiles else "",
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def version_of(digest: str) -> str:
    """The artefact's version: the format's number and the beginning of the recipe's digest."""
    return f"1-{digest[:8]}"


@functools.cache
def _code_digest(module: str) -> str:
    """The digest of a module's code; comments and layout do not count."""
    path = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
