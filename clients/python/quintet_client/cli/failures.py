"""Error messages of the command, and the exit status of each."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from quintet_client import errors
from quintet_client.cli.terminal import to_stderr
from quintet_client.errors import QuintetError, Violation

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
READER_GONE = 141  # as a shell reports SIGPIPE

# What to do, where the message does not say it.
_ADVICE: dict[type[QuintetError], str] = {
    errors.Unreachable: "is the server running there? --address or QUINTET_ADDRESS names another",
    errors.DeadlineExceeded: "--timeout SECONDS allows more time",
    errors.UpstreamTimeout: "--timeout SECONDS allows more time",
    errors.ModelNotFound: "'quintet models' lists the models",
    errors.CollectionNotFound: "'quintet add COLLECTION FILE...' makes a collection",
    errors.EmbedderMismatch: "'quintet reindex COLLECTION' builds it again",
    errors.ModelLoading: "'quintet health --wait 60' waits until the server is ready",
    errors.MessageTooLarge: "send less at once",
    errors.Unauthenticated: "give a key (--api-key-file, QUINTET_API_KEY) or a certificate (--tls-cert, --tls-key)",
    errors.BudgetExhausted: "the operator of the server can raise the budget",
}


class UsageError(Exception):
    """The command line, or a file that it names, cannot be used."""


def os_reason(error: OSError) -> str:
    """What the operating system reports, without the path."""
    return (error.strerror or str(error)).lower()


def report(error: QuintetError | UsageError, address: str = "") -> int:
    """Write the error to standard error; return the exit status."""
    lines = _lines(error, address) if isinstance(error, QuintetError) else [str(error)]
    to_stderr(("error:", "red"), (" " + "\n  ".join(lines), ""))
    return USAGE if isinstance(error, UsageError | errors.InvalidRequest) else FAILED


def _lines(error: QuintetError, address: str) -> list[str]:
    if error.violations:
        lines = ["the request is invalid", *(f"{at}: {what}" if at else what for at, what in error.violations)]
    elif isinstance(error, errors.Unreachable):
        lines = [f"no answer from {address}: {_root_cause(error.message)}"]
    else:
        lines = [error.message or error.code.name]
    if error.retry_after is not None:
        lines.append(f"try again in {error.retry_after:g} s")
    if advice := _ADVICE.get(type(error)):
        lines.append(advice)
    if isinstance(error, errors.InternalError) or type(error) is QuintetError:
        lines.append(f"{error.reason or error.code.name}, request id {error.request_id}")
    return lines


def _root_cause(message: str) -> str:
    """The last part of gRPC's "failed to connect to all addresses; last error: ...: connect: Connection refused"."""
    return re.sub(r"^.*(?:Failed to connect to remote host|last error): ", "", message, flags=re.DOTALL)


@contextmanager
def named(field: str, names: Sequence[str]) -> Iterator[None]:
    """Name the items of a repeated field in errors as the user knows them: "texts[3]" becomes "line 131"."""
    try:
        yield
    except errors.InvalidRequest as error:
        error.violations = tuple(
            Violation(re.sub(rf"^{field}\[(\d+)\]", lambda match: names[int(match[1])], at), what)
            for at, what in error.violations
        )
        raise
