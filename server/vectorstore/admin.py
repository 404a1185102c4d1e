"""Making and removing collections, also from outside the server. Everything here blocks."""

from contextlib import suppress
from pathlib import Path

from server.domain.errors import CollectionBroken, CollectionExists
from server.models.artefact import POINTER, sync_folder, write_durably
from server.vectorstore import layout
from server.vectorstore.collection import Collection
from server.vectorstore.segment import Content, write_segment


def create_collection(index: Path, name: str, content: Content, *, generation: int = 0, owner: str = "") -> Collection:
    """Make a collection of `content`, complete or not at all. Raises CollectionExists and StorageFull."""
    folder = layout.collection_folder(index, name)
    if folder.exists():
        raise CollectionExists(name)
    with layout.full_disk_as_error(name), layout.staging_folder(index) as staged:
        segment = layout.segment_folder(staged, generation)
        segment.mkdir()
        write_segment(segment, name, generation, content, origin="create")
        sync_folder(segment)
        if owner:
            layout.write_owner(staged, owner)
        write_durably(staged / POINTER, f"{generation}\n".encode())
        try:
            staged.rename(folder)
        except OSError as error:
            if folder.exists():
                raise CollectionExists(name) from error
            raise
        sync_folder(index)
    return Collection(folder)


def drop_collection(index: Path, name: str) -> None:
    """Remove a collection. Raises CollectionNotFound, and ServerOverloaded if another process is writing."""
    folder = layout.collection_folder(index, name)
    with layout.locked(folder):
        layout.remove(folder)
    sync_folder(index)


def publish_collection(index: Path, name: str, content: Content) -> None:
    """Make `content` the next generation of a collection, new or not. Running servers notice it."""
    folder, owner = layout.collection_folder(index, name), ""
    if folder.exists():
        try:
            collection = Collection(folder)
        except CollectionBroken:  # or written in an older format: nothing of it is kept but its owner
            with suppress(OSError, ValueError):
                owner = layout.read_owner(folder)
            drop_collection(index, name)
        else:
            collection.replace(content, collection.snapshot, "publish")
            return
    create_collection(index, name, content, generation=1, owner=owner)
