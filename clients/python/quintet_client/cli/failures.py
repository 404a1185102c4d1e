"""What is said of a failure, and the exit status that it gives."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from quintet_client import errors
from quintet_client.cli.terminal import clean, paint
from quintet_client.errors import QuintetError, Violation

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
READER_GONE = 141  # as a shell reports SIGPIPE

# What to do about it, where the message does not say so itself.
_ADVICE: dict[type[QuintetError], str] = {
    errors.Unreachable: "is the server running there? --address or QUINTET_ADDRESS names another",
    errors.DeadlineExceeded: "--timeout SECONDS allows more time",
    errors.UpstreamTimeout: "--timeout SECONDS allows more time",
    errors.ModelNotFound: "'quintet models' lists the models",
    errors.CollectionNotFound: "'quintet add COLLECTION FILE...' makes a collection",
    errors.EmbedderMismatch: "'quintet reindex COLLECTION' builds it again",
    errors.ModelLoading: "'quintet health --wait 60' waits until the server is ready",
    errors.MessageTooLarge: "send less at once",
    errors.Unauthenticated: "--api-key-file or QUINTET_API_KEY has the key, --tls-cert and --tls-key a certificate",
    errors.BudgetExhausted: "ask whoever runs the server for more",
}


class UsageError(Exception):
    """The command line, or a file that it names, cannot be used."""


def tell(error: QuintetError | UsageError, address: str = "") -> int:
    """Write the error to standard error; return the exit status."""
    lines = _lines(error, address) if isinstance(error, QuintetError) else [str(error)]
    print(paint("error:", "red", sys.stderr), clean("\n  ".join(lines)), file=sys.stderr, flush=True)
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
    """Call the items of a repeated field by names that the user knows: "texts[3]" becomes "line 131"."""
    try:
        yield
    except errors.InvalidRequest as error:
        renamed = [
            Violation(re.sub(rf"^{field}\[(\d+)\]", lambda match: names[int(match[1])], at), what)
            for at, what in error.violations
        ]
        raise errors.InvalidRequest(
            error.message, code=error.code, reason=error.reason, request_id=error.request_id, violations=renamed
        ) from error
