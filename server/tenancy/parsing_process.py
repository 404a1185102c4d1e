"""Parses large tenants files in a process of its own.

Parsing 10,000 tenants takes seconds of pure Python. On a thread of the server it would hold the interpreter's lock, and
every call would wait. The process sends the tenants in parts that are small enough to be unpickled between calls.
"""

import contextlib
import gc
import logging
import pickle
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import fields
from itertools import islice
from typing import IO, Any

from server.domain import priority
from server.domain.reloading_file import BadFile
from server.tenancy.tenants_file import Directory, parse

log = logging.getLogger(__name__)
_PART = 100  # items of a mapping
_PAUSE_SECONDS = 0.001  # between parts, for the event loop


def parse_apart(content: bytes, services: Collection[str]) -> Directory:
    """What parse() returns or raises. If the process fails, this thread parses."""
    command = [sys.executable, "-P", "-m", "server.tenancy.parsing_process", *services]
    try:
        with subprocess.Popen(  # noqa: S603  # the command is our own
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(content)
            child.stdin.close()
            return _receive(child.stdout)
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        log.warning("the process that parses tenants failed (%s); the server parses them itself", error)
        return parse(content, services)


def _receive(stream: IO[bytes]) -> Directory:
    unpickler = pickle.Unpickler(stream)  # noqa: S301  # our own process wrote it. It knows objects of earlier parts
    found: dict[str, dict[str, Any]] = {field.name: {} for field in fields(Directory)}
    message = unpickler.load()  # after the parsing
    with _without_collections():
        while not isinstance(message, str):
            name, items = message
            found[name].update(items)
            time.sleep(_PAUSE_SECONDS)
            message = unpickler.load()
    if message:
        raise BadFile(message)
    return Directory(**found)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Exclude what the body makes from garbage collection, which would walk it again and again and hold all calls.

    Other objects of that moment are excluded too, until models are replaced (models/process_memory.py).
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _send(stream: IO[bytes], directory: Directory) -> None:
    """Some items of a field at a time, with the field's name."""
    pickler = pickle.Pickler(stream)
    for field in fields(directory):
        items = iter(getattr(directory, field.name).items())
        while part := list(islice(items, _PART)):
            pickler.dump((field.name, part))
    pickler.dump("")


def main() -> None:
    """Read a file's content from standard input, and write the tenants, or the problem, to standard output."""
    priority.step_back(priority.LANES)  # as computing for callers: a revoked key must not wait for an idle moment
    with contextlib.suppress(BrokenPipeError):  # the server has ended
        try:
            directory = parse(sys.stdin.buffer.read(), sys.argv[1:])
        except BadFile as error:
            pickle.dump(str(error), sys.stdout.buffer)
        else:
            _send(sys.stdout.buffer, directory)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
