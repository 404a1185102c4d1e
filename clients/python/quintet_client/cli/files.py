"""Finds files, and makes documents of them."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from quintet.v1 import rag_pb2

from quintet_client.cli.failures import UsageError, os_reason
from quintet_client.cli.parsers import PARSERS, Unusable, parse
from quintet_client.contract import rules
from quintet_client.inputs import Document

MAX_TEXT = rules(rag_pb2.Document, "text").string.max_len
MAX_TITLE = rules(rag_pb2.Document, "title").string.max_len
MAX_ID = rules(rag_pb2.Document, "id").string.max_len
# Where a part may end, best first: at a blank line, a line end, a sentence end, between words.
_BORDERS = (re.compile(r"\n[^\S\n]*\n"), re.compile(r"\n"), re.compile(r"(?<=[.!?。！？])\s?"), re.compile(r"\s"))


class File(NamedTuple):
    """A file that may become documents; `name` is its id, `size` is in bytes."""

    path: Path
    name: str
    size: int


class Skipped(NamedTuple):
    """A file that is not added, and the reason."""

    path: str
    reason: str


def collect(paths: Sequence[str]) -> tuple[list[File], list[Skipped]]:
    """The given files and those in the given folders, in order. Raises UsageError for a path that does not exist."""
    roots = [Path(path) for path in paths]
    for root in roots:
        if not root.exists():
            raise UsageError(f"{root}: no such file or folder")
    files: dict[str, File] = {}
    skipped: list[Skipped] = []
    for root in roots:
        base = _base(root)
        for found in _files(root) if root.is_dir() else [root]:
            if isinstance(found, Skipped):
                skipped.append(found)
                continue
            name = Path(os.path.abspath(found)).relative_to(base).as_posix()
            if name in files:
                skipped.append(Skipped(_shown(found), f"there was another {_shown(name)}"))
            else:
                files[name] = File(found, name, _size(found))
    return list(files.values()), skipped


def documents_of(file: File) -> list[Document]:
    """One document, or several with the ids NAME#1, NAME#2 ... if the text is too long for one. Raises Unusable."""
    if _shown(file.name) != file.name:
        raise Unusable("its name is not UTF-8")
    try:
        title, text = parse(file.path)
    except OSError as error:
        raise Unusable(os_reason(error)) from error
    parts = list(split(text, MAX_TEXT))
    longest = len(file.name) + (len(f"#{len(parts)}") if len(parts) > 1 else 0)
    if longest > MAX_ID:
        raise Unusable(f"its id would have {longest} characters; at most {MAX_ID} are allowed")
    shared = {"file": file.name, "format": file.path.suffix.lower().removeprefix(".")}
    return [
        {
            "id": f"{file.name}#{number}" if len(parts) > 1 else file.name,
            "title": (title or file.path.name)[:MAX_TITLE],
            "text": part.text,
            "metadata": {**shared, "start": str(part.start)} if len(parts) > 1 else shared,
        }
        for number, part in enumerate(parts, 1)
    ]


def _base(root: Path) -> Path:
    """The folder that ids are relative to; files keep their ids wherever in it the command runs."""
    here, there = Path.cwd(), Path(os.path.abspath(root))
    return here if there.is_relative_to(here) else there.parent


def _files(folder: Path) -> Iterator[Path | Skipped]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield Skipped(_shown(folder), os_reason(error))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if not entry.is_symlink():  # a link could lead back up
                yield from _files(entry)
        elif entry.suffix.lower() in PARSERS:
            yield entry
        else:
            yield Skipped(_shown(entry), f"not text, Markdown, HTML or PDF: {entry.suffix or 'no suffix'}")


def _size(path: Path) -> int:
    """In bytes; 0 if unknown: reading the file reports the reason."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _shown(path: Path | str) -> str:
    """The path as text; file names may be invalid UTF-8."""
    return os.fsencode(path).decode(errors="replace")


class Part(NamedTuple):
    """A part of a text; `start` is its offset in code points."""

    start: int
    text: str


def split(text: str, limit: int) -> Iterator[Part]:
    """Parts of at most `limit` code points, without surrounding white space; a text that fits is one part."""
    start = 0
    while start < len(text):
        end = len(text) if len(text) - start <= limit else _border(text, start, limit)
        part = text[start:end].strip()
        if part:
            yield Part(start + text[start:end].index(part[0]), part)
        start = end


def _border(text: str, start: int, limit: int) -> int:
    """The last border in the second half of the limit, so that no part is tiny; else the limit."""
    for border in _BORDERS:
        found = [match.end() for match in border.finditer(text, start + limit // 2, start + limit)]
        if found:
            return found[-1]
    return start + limit
