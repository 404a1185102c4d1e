"""The lock file: every foreign file that Quintet builds on, with its size, its SHA-256 and its sources.

The sources of an input are tried in order. It does not matter which of them delivers: a file counts only if its size
and digest are those of the lock file.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from training.errors import LockError

LOCK_FILE = Path(__file__).parents[1] / "artefacts.lock.json"
NESTED = "!/"  # in a member's name: "model.zip!/config.json" lies in an archive within the archive
WHOLE = "."  # in place of a member's name: the file is the distribution itself

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class PinnedFile:
    """A file of an input. An optional one (a licence text) is taken where the source has it."""

    path: str
    bytes: int
    sha256: str
    optional: bool = False

    @property
    def is_licence(self) -> bool:
        """Whether it is the text of a licence or notice."""
        return PurePosixPath(self.path).name.upper().startswith(("LICEN", "NOTICE"))


@dataclass(frozen=True)
class Distribution:
    """A wheel or source distribution of the package index, which is only read as an archive."""

    package: str
    version: str
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class HubSource:
    """A repository of the model hub at a commit; `names` maps paths of the input to other names there."""

    repository: str
    revision: str
    names: Mapping[str, str]

    def name_of(self, path: str) -> str:
        """The file's path in the repository."""
        return self.names.get(path, path)

    def __str__(self) -> str:
        return f"model hub {self.repository}"


@dataclass(frozen=True)
class PackageSource:
    """Distributions that contain the files. With several of them, a file is the join of one member of each."""

    distributions: tuple[Distribution, ...]
    folder: str
    names: Mapping[str, tuple[str, ...]]

    def members_of(self, path: str) -> tuple[str, ...]:
        """The pieces of a file: the name of one member of each distribution, in order."""
        return self.names.get(path, (self.folder + path,))

    def __str__(self) -> str:
        first, *others = self.distributions
        return f"package {first.package} {first.version}" + (f" and {len(others)} more" if others else "")


@dataclass(frozen=True)
class Licence:
    """The terms of an input, and whom to name."""

    name: str
    url: str
    attribution: str


@dataclass(frozen=True)
class Input:
    """Files that belong together."""

    name: str
    title: str
    licence: Licence
    files: tuple[PinnedFile, ...]
    sources: tuple[HubSource | PackageSource, ...]


def read_lock(path: Path = LOCK_FILE) -> dict[str, Input]:
    """All inputs by name. Raises LockError if the file is malformed."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return {name: _input(name, entry) for name, entry in raw["inputs"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise LockError(f"{path.name} is malformed: {type(error).__name__} {error}") from error


def safe_path(path: str) -> str:
    """`path` itself if it is relative and stays below its folder, else ValueError."""
    absolute = path.startswith("/") or ":" in path.split("/", maxsplit=1)[0]
    if not path or absolute or "\\" in path or "\0" in path or ".." in PurePosixPath(path).parts:
        raise ValueError(f"unsafe path {path!r}")
    return path


def _input(name: str, raw: Mapping[str, Any]) -> Input:
    files = tuple(PinnedFile(safe_path(path), **entry) for path, entry in raw["files"].items())
    for file in files:
        _check_pin(file)
    sources = tuple(_source(entry, files) for entry in raw["sources"])
    if not files or not sources:
        raise LockError(f"input {name} needs files and sources")
    return Input(name, raw["title"], Licence(**raw["licence"]), files, sources)


def _check_pin(pin: PinnedFile | Distribution) -> None:
    if not _SHA256.fullmatch(pin.sha256) or pin.bytes < 1:
        raise LockError(f"{pin} needs a size and a SHA-256")


def _source(raw: Mapping[str, Any], files: tuple[PinnedFile, ...]) -> HubSource | PackageSource:
    if "hub" in raw:
        if not _COMMIT.fullmatch(raw["revision"]):
            raise LockError(f"hub source {raw['hub']} needs a full commit")
        return HubSource(raw["hub"], raw["revision"], raw.get("names", {}))
    names = {
        path: (members,) if isinstance(members, str) else tuple(members)
        for path, members in raw.get("names", {}).items()
    }
    source = PackageSource(tuple(Distribution(**each) for each in raw["distributions"]), raw.get("folder", ""), names)
    for distribution in source.distributions:
        _check_pin(distribution)
        if "/" in distribution.file:
            raise LockError(f"{distribution.file} is not a file name")
    for file in files:
        members = source.members_of(file.path)
        if len(members) != len(source.distributions):
            raise LockError(f"{file.path} needs one member in each of {len(source.distributions)} distributions")
        for member, distribution in zip(members, source.distributions, strict=True):
            safe_path(member)
            if member == WHOLE and (len(files) > 1 or file.sha256 != distribution.sha256):
                raise LockError(f"{file.path} must be its distribution, and the only file")
    return source
