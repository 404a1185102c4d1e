"""The `quintet` command."""

# gRPC reads this when it is imported. Its log would stand between the lines that are for people.
import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import argparse
import signal
import sys
import threading
from collections.abc import Sequence

from quintet_client import __version__
from quintet_client.cli import add as adding
from quintet_client.cli import analyze, chat, classify, collections, documents, models, price, state, tenants, usage
from quintet_client.cli.failures import INTERRUPTED, READER_GONE, UsageError, tell
from quintet_client.cli.options import GLOBAL_DEFAULTS, Run, add_global_options, decode, read_bytes
from quintet_client.cli.terminal import Terminal
from quintet_client.client import QuintetClient
from quintet_client.errors import QuintetError

_EPILOG = """examples:
  quintet health --wait 60
  quintet classify "I love it" "meh"
  quintet ask "Who painted the Night Watch?"
  quintet --address models.internal:50051 models --json

Exit status: 0 success, 1 failure, 2 invalid command line or request, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    sys.unraisablehook = interrupt_again
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # for instance `quintet models | head -1`
        # Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    return status


def interrupt_again(lost: "sys.UnraisableHookArgs") -> None:
    """Press Ctrl-C once more for the user if it came while an object was being deleted, where Python drops it."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        # From another thread and a little later: raised in here, it would be dropped again.
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def _run(argv: Sequence[str]) -> int:
    address = ""
    try:
        args = _parse(argv)
        with _connect(args) as client:
            address = client.address
            return int(args.run(args, client, Terminal(as_json=args.json)))
    except (QuintetError, UsageError) as error:
        return tell(error, address)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    if any("\udc80" <= character <= "\udcff" for argument in argv for character in argument):
        raise UsageError("an argument is not valid UTF-8")
    parser = argparse.ArgumentParser(
        prog="quintet",
        usage="quintet COMMAND [argument ...] [option ...]",
        description="Talk to a Quintet server: classify texts, price houses, chat, ask documents, analyse text.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"quintet {__version__}")
    parser.set_defaults(**GLOBAL_DEFAULTS)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", prog="quintet", required=True)
    add_global_options(parser)

    def add(name: str, run: Run, arguments: str, summary: str, examples: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            usage=" ".join(part for part in ("quintet", name, arguments, "[option ...]") if part),
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(run=run)
        add_global_options(command)
        return command

    for module in (classify, price, chat, documents, adding, collections, analyze, state, models, tenants, usage):
        module.register(add)
    return parser.parse_args(argv)


def _connect(args: argparse.Namespace) -> QuintetClient:
    key = decode(read_bytes(args.api_key_file), args.api_key_file).strip() if args.api_key_file else None
    roots, certificate, tls_key = (
        read_bytes(path) if path else None for path in (args.tls_ca, args.tls_cert, args.tls_key)
    )
    try:
        return QuintetClient(
            args.address,
            api_key=key,
            tls=args.tls,
            root_certificates=roots,
            client_certificate=certificate,
            client_key=tls_key,
            timeout=args.timeout,
        )
    except ValueError as error:  # keys that cannot be used; the message does not show them
        raise UsageError(str(error)) from error
