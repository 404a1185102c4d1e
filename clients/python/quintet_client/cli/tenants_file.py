"""Edits a TOML file that a server reads and people edit: comments stay, and no edit is lost.

The file is written aside, synced and renamed, so that a server never reads half an edit. A lock on its folder
serialises edits.
"""

import contextlib
import os
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from quintet_client.cli.failures import UsageError, os_reason

Table = MutableMapping[str, Any]
Edit = Callable[[Table], None]
_LOCK_SECONDS = 10.0
_NO_GAP = re.compile(r"^([^#\n].*)\n(?=\[)", re.MULTILINE)  # a line directly above a table, other than a comment


def read_file(path: Path) -> str:
    """Read a file and check that it is TOML. Raises UsageError."""
    try:
        text = path.read_text("utf-8")
        tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: {os_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    return text


def edit_file(path: Path, edit: Edit, *, new: str | None = None) -> None:
    """Apply `edit` to the file; a missing file starts as `new`. Raises UsageError.

    `edit` is called twice: on the plain values, and on the document with its comments. The results must be equal.
    """
    try:
        import tomlkit
        from tomlkit.exceptions import TOMLKitError
    except ImportError as error:
        raise UsageError("needs: pip install 'quintet-client[tenants]'") from error
    path = Path(os.path.realpath(path))
    with _locked(path.parent):
        text = new if new is not None and not path.exists() else read_file(path)
        values = tomllib.loads(text)
        edit(values)
        try:
            document = tomlkit.parse(text)
            edit(document)
            edited = _NO_GAP.sub(r"\1\n\n", tomlkit.dumps(document))
        except TOMLKitError:
            edited = ""
        if _plain(edited) != values:  # the file decides who may call
            raise UsageError(f"{path} was not changed: group the tables of each tenant together, then retry")
        try:
            _replace(path, edited)
        except OSError as error:
            raise UsageError(f"{path}: {os_reason(error)}") from error


def table(parent: Table, name: str) -> Table:
    """A table within another; created if missing."""
    if name not in parent:
        parent[name] = {}
    found = parent[name]
    if not isinstance(found, MutableMapping):
        raise UsageError(f"the file is not a tenants file: {name} is not a table")
    return found


def tenant_of(file: Table, name: str) -> Table:
    """The table of a tenant. Raises UsageError if there is none."""
    tenants = table(file, "tenants")
    if name not in tenants:
        raise UsageError(f'there is no tenant "{name}"; there are: {", ".join(tenants) or "none"}')
    return table(tenants, name)


def remove(parent: Table, key: str) -> None:
    """Delete a table from its parent in an edit; keep the comments below it.

    tomlkit attaches comments above the next table to the table before them.
    """
    from tomlkit.exceptions import TOMLKitError
    from tomlkit.items import Comment, Whitespace

    body = getattr(getattr(parent[key], "value", None), "body", None)  # plain values have none
    kept = []
    while body and body[-1][0] is None:
        item = body.pop()[1]
        kept += [item] if isinstance(item, Comment | Whitespace) else []
    if kept and not hasattr(parent, "add"):
        raise TOMLKitError("a comment cannot be moved within tables that are out of order")
    del parent[key]
    for item in reversed(kept):
        parent.add(item)  # type: ignore[attr-defined]  # the library's tables have it


def _plain(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. The file itself is not locked: renaming replaces it and its lock."""
    import fcntl  # not on Windows, where the other commands work

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{folder}: {os_reason(error)}") from error
    try:
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise UsageError(f"another edit in {folder} has not ended after {_LOCK_SECONDS:g} s") from error
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def written_aside(path: Path, text: str, mode: int = 0o600) -> Iterator[int]:
    """Write the text beside the file, yield the descriptor, and put it in place if the body succeeds: all or nothing.

    Raises OSError.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
            yield descriptor
            os.fchmod(descriptor, mode)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _replace(path: Path, text: str) -> None:
    """Replace the file atomically. A new one is readable only by its owner; else mode and, if allowed, owner stay."""
    before = path.stat() if path.exists() else None
    with written_aside(path, text, before.st_mode & 0o777 if before else 0o600) as descriptor:
        if before:
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, before.st_uid, before.st_gid)
