"""The lock file: every foreign file that Quintet builds on, by size and SHA-256, with the places to get it.

An input is a group of files that belong together, and its `sources` are tried in order. It does not matter which
of them answers: a file counts only if its size and digest are those written here. A source is a repository of the
model hub at one commit, or one or more packages of the package index that carry the files as data.
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
WHOLE = "."  # in place of a member's name: the content is the carrier itself

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Content:
    """A pinned file. An optional one (a licence text) is taken where the source has it."""

    path: str
    bytes: int
    sha256: str
    optional: bool = False

    @property
    def is_licence(self) -> bool:
        """Whether it is the text of a licence or notice."""
        return PurePosixPath(self.path).name.upper().startswith(("LICEN", "NOTICE"))


@dataclass(frozen=True)
class Carrier:
    """A file of the package index that carries contents; it is read as data and never installed."""

    package: str
    version: str
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class HubSource:
    """A repository of the model hub at a commit; `names` maps contents to other names there."""

    repository: str
    revision: str
    names: Mapping[str, str]

    def name_of(self, content: str) -> str:
        """The content's path in the repository."""
        return self.names.get(content, content)

    def __str__(self) -> str:
        return f"model hub {self.repository}"


@dataclass(frozen=True)
class PackageSource:
    """Packages that carry the contents. With several carriers, a content is the join of one member of each."""

    carriers: tuple[Carrier, ...]
    folder: str
    names: Mapping[str, tuple[str, ...]]

    def members_of(self, content: str) -> tuple[str, ...]:
        """The content's pieces: one member's name for each carrier, in order."""
        return self.names.get(content, (self.folder + content,))

    def __str__(self) -> str:
        first = self.carriers[0]
        more = f" and {len(self.carriers) - 1} more" if len(self.carriers) > 1 else ""
        return f"package {first.package} {first.version}{more}"


@dataclass(frozen=True)
class Licence:
    """Under which terms an input may be used, and whom to name."""

    name: str
    url: str
    attribution: str


@dataclass(frozen=True)
class Input:
    """Files that belong together."""

    name: str
    title: str
    licence: Licence
    contents: tuple[Content, ...]
    sources: tuple[HubSource | PackageSource, ...]


def read_lock(path: Path = LOCK_FILE) -> dict[str, Input]:
    """All inputs by name. Raises LockError for anything that is not as described above."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return {name: _input(name, entry) for name, entry in raw["inputs"].items()}
    except LockError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise LockError(f"{path.name} is malformed: {type(error).__name__} {error}") from error


def safe_path(path: str) -> str:
    """`path` itself if it is relative and stays below its folder, else ValueError."""
    if not path or "\\" in path or "\0" in path or ":" in path.split("/", maxsplit=1)[0]:
        raise ValueError(f"unsafe path {path!r}")
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts:
        raise ValueError(f"unsafe path {path!r}")
    return path


def _input(name: str, raw: Mapping[str, Any]) -> Input:
    contents = tuple(_content(path, entry) for path, entry in raw["contents"].items())
    sources = tuple(_source(entry, contents) for entry in raw["sources"])
    if not contents or not sources:
        raise LockError(f"input {name} needs contents and sources")
    return Input(name, raw["title"], Licence(**raw["licence"]), contents, sources)


def _content(path: str, raw: Mapping[str, Any]) -> Content:
    content = Content(safe_path(path), **raw)
    if not _SHA256.fullmatch(content.sha256) or content.bytes < 1:
        raise LockError(f"content {path} needs a size and a SHA-256")
    return content


def _source(raw: Mapping[str, Any], contents: tuple[Content, ...]) -> HubSource | PackageSource:
    if "hub" in raw:
        if not _COMMIT.fullmatch(raw["revision"]):
            raise LockError(f"hub source {raw['hub']} needs a full commit")
        return HubSource(raw["hub"], raw["revision"], raw.get("names", {}))
    carriers = tuple(Carrier(**entry) for entry in raw["carriers"])
    for carrier in carriers:
        if not _SHA256.fullmatch(carrier.sha256) or carrier.bytes < 1 or "/" in carrier.file:
            raise LockError(f"carrier {carrier.package} needs a file name, a size and a SHA-256")
    names = {
        path: (members,) if isinstance(members, str) else tuple(members)
        for path, members in raw.get("names", {}).items()
    }
    source = PackageSource(carriers, raw.get("folder", ""), names)
    for content in contents:
        members = source.members_of(content.path)
        if len(members) != len(carriers):
            raise LockError(f"content {content.path} needs one member in each of {len(carriers)} carriers")
        for member, carrier in zip(members, carriers, strict=True):
            safe_path(member)
            if member == WHOLE and (len(contents) > 1 or content.sha256 != carrier.sha256):
                raise LockError(f"content {content.path} must be its carrier, and alone")
    return source
