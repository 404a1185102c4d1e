"""What there is to do: which artefacts are ready, which are in the cache, and which must be built from what."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from server.domain.errors import ModelUnavailable
from server.models.artefact import MANIFEST, POINTER, file_sha256, open_artefact, read_pointer
from server.vectorstore.layout import FORMAT, segment_folder
from training.fetch.cache import Cache
from training.fetch.lock import Input, PackageSource
from training.golden import lacks_golden
from training.recipe import Kind, Profile, Recipe, digest_of, version_of

# What reading a file of any content can raise.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class State(Enum):
    """How far an artefact is."""

    READY = "ready"
    CACHED = "in the cache"
    MISSING = "to be made"


@dataclass(frozen=True)
class Step:
    """An artefact with its state. `fetch`: inputs that it lacks; `publish`: whether it was selected."""

    recipe: Recipe
    digest: str
    state: State
    publish: bool
    fetch: tuple[Input, ...]

    @property
    def version(self) -> str:
        """The artefact's version."""
        return version_of(self.digest)


@dataclass(frozen=True)
class Locations:
    """The cache, the folders that the server reads, and a registry that gets the models, too, if there is one."""

    cache: Cache
    models: Path
    index: Path
    registry_uri: str = ""


def make_plan(
    selected: Collection[str],
    recipes: Mapping[str, Recipe],
    inputs: Mapping[str, Input],
    locations: Locations,
    profile: Profile,
    *,
    check: bool = False,
    force: bool = False,
) -> list[Step]:
    """The steps for the selected artefacts and for those that they need, in the order of `recipes`.

    Files are compared by size. `check` compares the digests of selected artefacts, too, so that selecting an artefact
    by name repairs it. `force` builds the selected ones again.
    """
    steps: list[Step] = []
    needed: set[str] = set()  # by artefacts that must be built
    for name, recipe in reversed(list(recipes.items())):  # an artefact comes after what it needs
        if name not in selected and name not in needed:
            continue
        digest = digest_of(name, recipes, inputs, profile)
        again, compare = force and name in selected, check and name in selected
        versions = {each: version_of(digest_of(each, recipes, inputs, profile)) for each in (name, *recipe.needs)}
        if not again and name not in needed and _is_ready(recipe, versions, locations, compare):
            state = State.READY
        elif not again and is_whole(locations.cache.artefact(name, digest), compare):
            state = State.CACHED
        else:
            state = State.MISSING
            needed.update(recipe.needs)
        lacking = [inputs[each] for each in recipe.inputs if locations.cache.missing(inputs[each])]
        fetch = tuple(lacking) if state is State.MISSING else ()
        steps.append(Step(recipe, digest, state, publish=name in selected, fetch=fetch))
    return steps[::-1]


def download_bytes(item: Input) -> int:
    """How much the first source that consists of packages sends."""
    for source in item.sources:
        if isinstance(source, PackageSource):
            return sum(distribution.bytes for distribution in source.distributions)
    return sum(file.bytes for file in item.files)


def _is_ready(recipe: Recipe, versions: Mapping[str, str], locations: Locations, check: bool) -> bool:
    """Whether it is served already; `versions` are those that it and what it needs should have."""
    if recipe.kind is Kind.REPORT:
        return False  # it was selected to be shown
    if recipe.kind is Kind.COLLECTION:
        return _is_installed(locations.index / recipe.name, versions, locations.models, check)
    return _is_published(recipe.name, versions[recipe.name], locations.models, check)


def _is_published(name: str, version: str, models: Path, check: bool) -> bool:
    folder = models / name / version
    try:
        if read_pointer(models / name / POINTER) != version or not is_whole(folder, check=False):
            return False
        return not lacks_golden(folder) and (not check or bool(open_artefact(models, name)))
    except (ModelUnavailable, *_DAMAGED):
        return False


def _is_installed(collection: Path, versions: Mapping[str, str], models: Path, check: bool) -> bool:
    """Whether there is a collection, of any documents, that fits the published embedder."""
    try:
        folder = segment_folder(collection, int((collection / POINTER).read_text()))
        manifest = json.loads((folder / MANIFEST).read_bytes())
        embedder = manifest["embedder"]
        published = models / embedder["name"] / versions[embedder["name"]]
        fits = manifest["format"] == FORMAT and embedder["digest"] == f"sha256:{file_sha256(published / MANIFEST)}"
    except _DAMAGED:
        return False
    # Publishing an embedder with golden inputs changes its digest.
    return fits and not lacks_golden(published) and is_whole(folder, check)


def is_whole(folder: Path, check: bool) -> bool:
    """Whether all files of the manifest are there with their sizes, and with `check` with their digests."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]  # of a model or of a collection
        return all(
            (folder / path).stat().st_size == entry["bytes"]
            and (not check or file_sha256(folder / path) == entry["sha256"])
            for path, entry in files.items()
        )
    except _DAMAGED:
        return False
