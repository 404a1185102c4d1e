"""Publishing an artefact into the store: written aside, synced, renamed; then the pointer moves.

Nothing half-written can be seen. Killed at any moment, it leaves pointers that name whole versions, and the next
publishing clears up. It blocks: call it on a thread.
"""

import ctypes
import os
import shutil
from pathlib import Path

from server.models.artefact import MANIFEST, file_sha256, read_manifest, sync_folder
from server.models.store import CURRENT, ModelStore, alone

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def publish(source: Path, models: Path, alias: str | None = CURRENT) -> Path:
    """Make the finished artefact folder `source` a version below `models`, which `alias` names; return its place.

    Files are hard-linked where both are on one disk, else copied. A version that is there already with the same
    manifest is kept; with another manifest it is replaced.
    """
    manifest = read_manifest(source)
    home = models / manifest.name
    home.mkdir(parents=True, exist_ok=True)
    target = home / manifest.version
    with alone(home):
        aside = home / f".{manifest.version}"
        shutil.rmtree(aside, ignore_errors=True)
        if not (target / MANIFEST).is_file() or file_sha256(target / MANIFEST) != file_sha256(source / MANIFEST):
            shutil.copytree(source, aside, copy_function=place)
            for folder in (path for path in (*aside.rglob("*"), aside) if path.is_dir()):
                sync_folder(folder)
            if target.exists():
                _exchange(aside, target)
                shutil.rmtree(aside)
            else:
                aside.replace(target)
            sync_folder(home)
    if alias:
        ModelStore(models).point(manifest.name, alias, manifest.version)
    return target


def _exchange(left: Path, right: Path) -> None:
    """Swap two folders in one step, so that neither name is ever missing: renameat2(2) of Linux.

    File systems that cannot do it get two renames.
    """
    paths = (os.fsencode(left.absolute()), os.fsencode(right.absolute()))
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None or rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        old = right.with_name(f"{left.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        right.replace(old)
        left.replace(right)
        old.replace(left)


def place(source: str, target: str) -> None:
    """Link a file, or copy it where that is not possible, and sync it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    with Path(target).open("rb") as file:
        os.fsync(file.fileno())
