"""Collections come and go: making, removing, and publishing one from outside the server. Everything here blocks."""

from pathlib import Path

from server.domain.errors import CollectionBroken, CollectionExists
from server.models.artefact import POINTER, sync_folder, write_durably
from server.vectorstore import layout as folders
from server.vectorstore.collection import Collection
from server.vectorstore.segment import Content, Indexer, Origin, no_index, write_generation

DEMO = "wikipedia"


def create_collection(index: Path, name: str, content: Content, indexer: Indexer, *, number: int = 0) -> Collection:
    """Make a collection of `content`, complete or not at all. Raises CollectionExists and StorageFull."""
    home = folders.collection_home(index, name)
    if home.exists():
        raise CollectionExists(name)
    with folders.full_disk_told(name), folders.aside(index) as aside:
        folder = folders.generation_folder(aside, number)
        folder.mkdir()
        write_generation(folder, Origin(name, number, "create"), content, indexer)
        sync_folder(folder)
        write_durably(aside / POINTER, f"{number}\n".encode())
        try:
            aside.rename(home)
        except OSError as error:
            if home.exists():
                raise CollectionExists(name) from error
            raise
        sync_folder(index)
    return Collection(home, indexer)


def drop_collection(index: Path, name: str) -> None:
    """Remove a collection. Raises CollectionNotFound, and ServerOverloaded if another process is writing."""
    home = folders.collection_home(index, name)
    with folders.locked(home):
        folders.remove(home)
    sync_folder(index)


def write_collection(index: Path, name: str, content: Content, indexer: Indexer = no_index) -> None:
    """Make `content` the next generation of a collection, which is made if it is new. Servers notice by themselves."""
    home = folders.collection_home(index, name)
    if not home.exists():
        create_collection(index, name, content, indexer, number=1)
        return
    try:
        collection = Collection(home, indexer)
    except CollectionBroken:  # or written in an older format: nothing of it is kept
        drop_collection(index, name)
        create_collection(index, name, content, indexer, number=1)
    else:
        collection.replace(content, collection.snapshot, "publish")
