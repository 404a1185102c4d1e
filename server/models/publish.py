"""Publishing an artefact: it is written aside, synced and renamed, and then the pointer moves.

If that is interrupted, pointers still name complete versions, and the next publishing removes the remains. It blocks.
"""

import ctypes
import os
import shutil
from pathlib import Path

from server.models.artefact import MANIFEST, file_sha256, read_manifest, sync_folder
from server.models.store import CURRENT, ModelStore, publishing

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def publish(source: Path, models: Path, alias: str | None = CURRENT) -> Path:
    """Make the finished artefact `source` a version in `models`, named by `alias`; return its folder.

    Files are hard-linked if that is possible, else copied. An existing version is replaced if its manifest differs.
    """
    manifest = read_manifest(source)
    model = models / manifest.name
    model.mkdir(parents=True, exist_ok=True)
    target, aside = model / manifest.version, model / f".{manifest.version}"
    with publishing(model):
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
            sync_folder(model)
    if alias:
        ModelStore(models).point(manifest.name, alias, manifest.version)
    return target


def _exchange(left: Path, right: Path) -> None:
    """Swap two folders in one step with renameat2(2) of Linux; where that fails, with three renames."""
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
