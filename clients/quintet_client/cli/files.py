"""Text files as documents."""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from quintet.v1 import rag_pb2

from quintet_client.cli.failures import UsageError
from quintet_client.contract import rules
from quintet_client.inputs import Document

MARKDOWN = {".md", ".markdown"}
SUFFIXES = {".txt", ".text", *MARKDOWN}
MAX_TEXT = rules(rag_pb2.Document, "text").string.max_len
MAX_TITLE = rules(rag_pb2.Document, "title").string.max_len
MAX_ID = rules(rag_pb2.Document, "id").string.max_len
_MAX_BYTES = 4 * MAX_TEXT + 3  # UTF-8 takes up to 4 bytes a code point, and 3 for a byte order mark
_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)(?:\s+#*)?\s*$")


class Skipped(NamedTuple):
    """A file that is not added, and why."""

    path: str
    reason: str


def collect(paths: Sequence[str]) -> Iterator[Document | Skipped]:
    """The documents of files and folders, in order. Raises UsageError, before any of them, for what does not exist."""
    roots = [Path(path) for path in paths]
    for root in roots:
        if not root.exists():
            raise UsageError(f"{root}: no such file or folder")
    return _collect(roots)


def _collect(roots: Sequence[Path]) -> Iterator[Document | Skipped]:
    seen: set[str] = set()
    for root in roots:
        base = _base(root)
        for file in _files(root) if root.is_dir() else [root]:
            if isinstance(file, Skipped):
                yield file
                continue
            name = Path(os.path.abspath(file)).relative_to(base).as_posix()
            if name in seen:
                yield Skipped(_shown(file), f"there was another {_shown(name)}")
            else:
                seen.add(name)
                yield _document(file, name)


def _base(root: Path) -> Path:
    """What ids are relative to: so that a folder's files keep their ids, wherever the command is run within it."""
    here, there = Path.cwd(), Path(os.path.abspath(root))
    return here if there.is_relative_to(here) else there.parent


def _files(folder: Path) -> Iterator[Path | Skipped]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield Skipped(_shown(folder), _why(error))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if not entry.is_symlink():  # a link could lead back up
                yield from _files(entry)
        elif entry.suffix.lower() in SUFFIXES:
            yield entry


def _document(file: Path, name: str) -> Document | Skipped:
    try:
        text = _text(file)
        if _shown(name) != name:
            raise ValueError("its name is not UTF-8")
        if len(name) > MAX_ID:
            raise ValueError(f"its path has {len(name)} characters; at most {MAX_ID} are allowed")
    except ValueError as error:
        return Skipped(_shown(file), str(error))
    return {"id": name, "title": _title(file, text), "text": text}


def _text(file: Path) -> str:
    """The content. Raises ValueError, which says why it cannot be used."""
    try:
        if not file.is_file():
            raise ValueError("not a file")
        if (size := file.stat().st_size) > _MAX_BYTES:
            raise ValueError(f"too long: {size} bytes; at most {MAX_TEXT} characters are allowed")
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(_why(error)) from error
    if b"\0" in content:
        raise ValueError("binary")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from error
    if len(text) > MAX_TEXT:
        raise ValueError(f"too long: {len(text)} characters; at most {MAX_TEXT} are allowed")
    if all(unicodedata.category(character)[0] in "ZC" for character in text):
        raise ValueError("empty")
    return text


def _title(file: Path, text: str) -> str:
    """The first heading of a Markdown file, else the file's name."""
    in_code = False
    for line in text.splitlines() if file.suffix.lower() in MARKDOWN else ():
        if _FENCE.match(line):
            in_code = not in_code
        elif not in_code and (heading := _HEADING.match(line)):
            return heading[1][:MAX_TITLE]
    return file.name[:MAX_TITLE]


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _shown(path: Path | str) -> str:
    """The path as text; file systems also hold names that are none."""
    return os.fsencode(path).decode(errors="replace")
