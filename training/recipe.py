"""The description of an artefact before it is built, and what its recipe works with.

A recipe's digest covers everything that decides the result: the digests of the inputs, the code, the profile and the
versions of the libraries. An artefact with the same digest is the same artefact and is not built again.
"""

import ast
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from server.models.folders import place
from training.fetch.lock import Input
from training.progress import Advance, Progress

Profile = Literal["fast", "long"]


class Kind(Enum):
    """What becomes of the result."""

    MODEL = "model"  # published below models/
    COLLECTION = "collection"  # installed below index/, unless a collection of that name fits
    REPORT = "report"  # stays in the cache; its report.md is the result


@dataclass(frozen=True)
class Recipe:
    """An artefact: `build` of training.recipes.`module` makes it from `inputs` of the lock and from other artefacts."""

    name: str
    module: str
    inputs: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # other artefacts
    code: tuple[str, ...] = ()  # further modules that decide the result
    libraries: tuple[str, ...] = ()  # distributions whose versions decide the result
    seconds: Mapping[Profile, float] | float = 1.0  # expected, on two cores
    key_metric: str = ""
    kind: Kind = Kind.MODEL
    by_default: bool = True  # else it is built only with --only

    def expected_seconds(self, profile: Profile) -> float:
        """How long building takes on two cores."""
        return self.seconds if isinstance(self.seconds, (int, float)) else self.seconds[profile]

    def versions(self) -> dict[str, str]:
        """The libraries with their installed versions. Raises PackageNotFoundError."""
        return {name: _version(name) for name in self.libraries}


@dataclass(frozen=True)
class Outcome:
    """What a build says about its result: the manifest's schema and metrics."""

    schema: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Workspace:
    """What a build gets: an empty `folder` to fill, its inputs, and the artefacts that it needs."""

    name: str
    folder: Path
    intermediate: Path  # a folder for results that the next build may use
    profile: Profile
    progress: Progress
    input: Callable[[str], dict[str, Path]]  # the verified files of an input by path, without licences; only read them
    artefact: Callable[[str], Path]  # the folder of an artefact that this one needs

    def link(self, source: Path, path: str) -> None:
        """Put a file into the folder, as a hard link where the disk allows that."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        place(str(source), str(target))

    def steps(self, total: int) -> AbstractContextManager[Advance]:
        """Show progress over this many steps."""
        return self.progress.task(self.name, total, "steps")


def digest_of(name: str, recipes: Mapping[str, Recipe], inputs: Mapping[str, Input], profile: Profile) -> str:
    """The digest of a recipe. Raises PackageNotFoundError for a library that is not installed."""
    recipe = recipes[name]
    decisive = {
        "name": name,
        "inputs": {key: [[file.path, file.sha256] for file in inputs[key].files] for key in recipe.inputs},
        "needs": {need: digest_of(need, recipes, inputs, profile) for need in recipe.needs},
        "code": {module: _code_digest(module) for module in (f"training.recipes.{recipe.module}", *recipe.code)},
        "libraries": recipe.versions(),
        "profile": profile if isinstance(recipe.seconds, Mapping) else "",
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def version_of(digest: str) -> str:
    """The artefact's version: the format's number and the beginning of the recipe's digest."""
    return f"1-{digest[:8]}"


@functools.cache
def _version(library: str) -> str:
    return importlib.metadata.version(library)


@functools.cache
def _code_digest(module: str) -> str:
    """The digest of a module's syntax tree; comments and layout do not count."""
    path = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
