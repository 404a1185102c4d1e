"""Options and arguments that the commands share."""

import argparse
import contextlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from quintet_client.cli.failures import UsageError, os_reason
from quintet_client.cli.terminal import Terminal
from quintet_client.client import QuintetClient
from quintet_client.filters import Condition

T = TypeVar("T")
# A command; it returns the exit status.
Run = Callable[[argparse.Namespace, QuintetClient, Terminal], int]


class AddCommand(Protocol):
    """Adds a command ("models") or an action of one ("collections show"): what runs it and what its help says."""

    def __call__(
        self, name: str, run: Run, arguments: str, summary: str, examples: str = "", *, has_actions: bool = False
    ) -> argparse.ArgumentParser: ...


def add_global_options(parser: argparse.ArgumentParser, default: str | None = argparse.SUPPRESS) -> None:
    """Options that may stand before or after the command; after it, their defaults would replace given values."""
    group = parser.add_argument_group("connection and output", argument_default=default)
    group.add_argument("--address", metavar="HOST:PORT", help="the server; default: QUINTET_ADDRESS or 127.0.0.1:50051")
    group.add_argument("--timeout", metavar="SECONDS", type=seconds, help="longest wait for an answer")
    group.add_argument("--json", action="store_true", help="write JSON, one object a line")
    group.add_argument("--api-key-file", metavar="FILE", help="file with the API key; default: QUINTET_API_KEY")
    group.add_argument("--tls", action="store_true", help="encrypt; trust the public certificate authorities")
    group.add_argument("--tls-ca", metavar="FILE", help="encrypt; trust the certificates in FILE (PEM) instead")
    group.add_argument("--tls-cert", metavar="FILE", help="encrypt; authenticate with the certificate in FILE (PEM)")
    group.add_argument("--tls-key", metavar="FILE", help="the key of --tls-cert (PEM)")


def duration(value: str) -> timedelta:
    """A length of time: 90d, 12h, 30m or 0."""
    found = re.fullmatch(r"(\d{1,6})([dhm])|0", value)
    if not found:
        raise argparse.ArgumentTypeError(f"must be a time such as 90d, 12h or 30m, not {value!r}")
    units = {"d": "days", "h": "hours", "m": "minutes"}
    return timedelta(**{units[found[2]]: int(found[1])}) if found[1] else timedelta()


def seconds(value: str) -> float:
    """A number of seconds above 0."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(value)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {value!r}")


def count(value: str) -> int:
    """A whole number above 0 that fits the contract's uint32."""
    with contextlib.suppress(ValueError):
        if 0 < (number := int(value)) < 2**32:
            return number
    raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {value!r}")


def condition(value: str) -> tuple[str, Condition]:
    """A condition on metadata: KEY=TEXT, KEY=ONE,OTHER or KEY=FROM..TO. Quotes around the value make it literal."""
    key, equals, text = value.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, not {value!r}")
    if len(text) > 1 and text[0] == text[-1] == '"':
        return key, text[1:-1]
    low, dots, high = text.partition("..")
    if dots and (low or high):
        numbers = [_number(end) for end in (low, high)]
        if all(number is not None or not end for number, end in zip(numbers, (low, high), strict=True)):
            return key, (numbers[0], numbers[1])
        return key, (low or None, high or None)
    return key, text.split(",") if "," in text else text


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_bytes(path: str) -> bytes:
    """A file's content, or standard input's for "-"."""
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {os_reason(error)}") from error


def decode(content: bytes, name: str) -> str:
    """The content as text."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 (byte {error.start})") from error


def text_or_stdin(words: str | None, what: str) -> str:
    """The argument, or the text on standard input without one."""
    if words is not None:
        return words
    if sys.stdin.isatty():
        raise UsageError(f"{what} is missing: give it as an argument or pipe it in")
    return decode(read_bytes("-"), "standard input")


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
