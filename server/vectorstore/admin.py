"""Making and removing collections, also from outside the server. Everything here blocks."""

import os
from contextlib import suppress
from pathlib import Path

from server.domain.errors import CollectionBroken, CollectionExists, CollectionNotFound
from server.models.artefact import POINTER, sync_folder, write_durably
from server.vectorstore import layout
from server.vectorstore.collection import Collection
from server.vectorstore.damage import refusals_as_errors
from server.vectorstore.segment import Content, write_segment


def create_collection(index: Path, name: str, content: Content, *, generation: int = 0, owner: str = "") -> Collection:
    """Make a collection of `content`, complete or not at all. Raises CollectionExists, StorageFull and
    CollectionUnreadable, and CollectionBroken if something else has its place.
    """
    folder = layout.collection_folder(index, name)
    _check_free(folder)
    with refusals_as_errors(name):
        index.mkdir(parents=True, exist_ok=True)
        with layout.staging_folder(index) as staged:
            segment = layout.segment_folder(staged, generation)
            segment.mkdir()
            write_segment(segment, name, generation, content, origin="create")
            sync_folder(segment)
            if owner:
                layout.write_owner(staged, owner)
            write_durably(staged / POINTER, f"{generation}\n".encode())
            try:
                staged.rename(folder)
            except OSError:
                _check_free(folder)
                raise
            sync_folder(index)
    return Collection(folder)


def _check_free(folder: Path) -> None:
    if folder.is_dir():
        raise CollectionExists(folder.name)
    if os.path.lexists(folder):
        what = "a file has the place of its folder. Remove the file"
        raise CollectionBroken(f'collection "{folder.name}" cannot be made: {what}')


def drop_collection(index: Path, name: str, owner: str | None = None) -> None:
    """Remove a collection, if this is still its recorded owner. Raises CollectionNotFound, CollectionUnreadable, and
    ServerOverloaded if another process is writing.
    """
    folder = layout.collection_folder(index, name)
    with refusals_as_errors(name, folder), layout.locked(folder):
        if owner is not None and owner != layout.owner_of_broken(folder):
            raise CollectionNotFound(name, [])
        layout.remove(folder)
    with suppress(OSError):  # the folder is gone; only its durability is not known
        sync_folder(index)


def publish_collection(index: Path, name: str, content: Content) -> None:
    """Make `content` the next generation of a collection, new or not. Running servers notice it."""
    folder, owner = layout.collection_folder(index, name), ""
    if folder.exists():
        try:
            collection = Collection(folder)
        except CollectionBroken:  # or written in an older format: nothing of it is kept but its owner
            owner = layout.owner_of_broken(folder)
            drop_collection(index, name)
        else:
            collection.replace(lambda _: content, "publish")
            return
    create_collection(index, name, content, generation=1, owner=owner)
