"""What versions took when they were loaded, beside them on disk.

    MODELS/NAME/VERSION.use.json    {ENGINE: {"resident_bytes": ..., "peak_bytes": ..., "seconds": ...}}

The numbers are estimates for the next load. A file that cannot be read, or has other content, counts as none; other
fields than these stay when it is written again.
"""

import contextlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from server.domain.files import read_regular
from server.models.artefact import Artefact, write_durably

log = logging.getLogger(__name__)
_MOST_BYTES = 1 << 20  # of a file
_MOST = 1 << 50  # no model takes a petabyte


class Use(NamedTuple):
    """What loading a version took at most so far: bytes that stay, bytes at the peak, seconds."""

    resident_bytes: int
    peak_bytes: int
    seconds: float


def read_use(artefact: Artefact, engine: str) -> Use | None:
    """What this version took on this engine; None if it was never loaded."""
    return _use(_read(_use_file(artefact)).get(engine))


def note_use(artefact: Artefact, engine: str, use: Use) -> Use:
    """Keep the larger numbers on disk, and return them. In a read-only folder they are lost."""
    if known := read_use(artefact, engine):
        use = Use._make(map(max, known, use))
    if use == known:
        return use
    path = _use_file(artefact)
    uses = _read(path)
    others = uses.get(engine)
    uses[engine] = {**(others if isinstance(others, dict) else {}), **use._asdict()}
    try:
        write_durably(path, json.dumps(uses, indent=2).encode())
    except OSError as error:
        log.debug("%s cannot be written: %s", path.name, error.strerror)
    return use


def _use_file(artefact: Artefact) -> Path:
    """Beside the version's folder, which has only files of the manifest."""
    return artefact.path.with_name(f"{artefact.path.name}.use.json")


def _read(path: Path) -> dict[str, Any]:
    """By engine; empty if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if isinstance(found := json.loads(read_regular(path, _MOST_BYTES)), dict):
            return found
    return {}


def _use(found: object) -> Use | None:
    """None for anything but three numbers that a load can take."""
    if not isinstance(found, dict):
        return None
    numbers: list[Any] = [found.get(name) for name in Use._fields]
    if not all(type(number) in {int, float} and 0 <= number < _MOST for number in numbers):
        return None
    resident, peak, seconds = numbers
    return Use(int(resident), int(peak), float(seconds))
