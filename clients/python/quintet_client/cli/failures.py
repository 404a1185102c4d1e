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
    errors.CollectionNotFound: "'quintet add COLLECTION FILE...' makes a collection of a name that is free",
    errors.EmbedderMismatch: "'quintet reindex COLLECTION' builds it again",
    errors.ModelLoading: "'quintet health --wait 60' waits until the server is ready",
    errors.MessageTooLarge: "send less at once",
    errors.Unauthenticated: "give a key (--api-key-file, QUINTET_API_KEY) or a certificate (--tls-cert, --tls-key)",
    errors.BudgetExhausted: "the operator of the server can raise the budget",
}
# What gRPC reports if a connection cannot be made, and what to do; with and without TLS on this side.
_TLS_ADVICE = (
    ("WRONG_VERSION_NUMBER", "the server does not use TLS there: leave out --tls, --tls-ca and --tls-cert"),
    ("certificate has expired|not yet valid", "the server's certificate must be replaced"),
    (
        "CERTIFICATE_VERIFY_FAILED|certificate signature failure",
        "the server's certificate is not from a trusted authority: --tls-ca FILE names the authority's",
    ),
    ("Hostname Verification|not match", "the certificate is for another name: --address must be one that it has"),
    ("create security handshaker", "a file of --tls-ca, --tls-cert or --tls-key is not PEM, or the key is another's"),
    ("Socket closed|Connection reset", "does the server require a certificate? --tls-cert and --tls-key give one"),
)
_PLAIN_ADVICE = (
    ("Socket closed|Connection reset|Broken pipe", "does the server use TLS? --tls or --tls-ca FILE encrypt"),
    ("parsing HTTP/2|SETTINGS frame", "what answers there is no gRPC server"),
)


class UsageError(Exception):
    """The command line, or a file that it names, cannot be used."""


def os_reason(error: OSError) -> str:
    """What the operating system reports, without the path."""
    return (error.strerror or str(error)).lower()


def report(error: QuintetError | UsageError, address: str = "", *, uses_tls: bool = False) -> int:
    """Write the error to standard error; return the exit status."""
    lines = _lines(error, address, uses_tls) if isinstance(error, QuintetError) else [str(error)]
    to_stderr(("error:", "red"), (" " + "\n  ".join(lines), ""))
    return USAGE if isinstance(error, UsageError | errors.InvalidRequest) else FAILED


def _lines(error: QuintetError, address: str, uses_tls: bool) -> list[str]:
    if error.violations:
        lines = ["the request is invalid", *(f"{at}: {what}" if at else what for at, what in error.violations)]
    elif isinstance(error, errors.Unreachable):
        lines = [f"no answer from {address}: {_root_cause(error.message)}"]
    else:
        lines = [error.message or error.code.name]
    if error.retry_after is not None:
        lines.append(f"try again in {error.retry_after:g} s")
    if advice := _connection_advice(error, uses_tls) or _ADVICE.get(type(error)):
        lines.append(advice)
    if isinstance(error, errors.InternalError) or type(error) is QuintetError:
        lines.append(f"{error.reason or error.code.name}, request id {error.request_id}")
    return lines


def _connection_advice(error: QuintetError, uses_tls: bool) -> str:
    if not isinstance(error, errors.Unreachable):
        return ""
    known = _TLS_ADVICE if uses_tls else _PLAIN_ADVICE
    return next((advice for words, advice in known if re.search(words, error.message)), "")


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
