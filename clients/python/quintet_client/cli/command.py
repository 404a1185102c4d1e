"""From the command line to an exit status: the parser, the connection, interruptions."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence

from rich_argparse import RawDescriptionRichHelpFormatter

from quintet_client import __version__
from quintet_client.cli import add as add_files
from quintet_client.cli import (
    analyze,
    chat,
    classify,
    collections,
    documents,
    grants,
    models,
    price,
    server,
    tenants,
    usage,
)
from quintet_client.cli.failures import INTERRUPTED, READER_GONE, UsageError, report
from quintet_client.cli.options import Run, add_global_options, decode, read_bytes
from quintet_client.cli.terminal import Terminal
from quintet_client.client import QuintetClient
from quintet_client.errors import QuintetError

_EPILOG = """examples:
  quintet health --wait 60
  quintet classify "I love it" "meh"
  quintet ask "Who painted the Night Watch?"
  quintet --address models.internal:50051 models --json

Exit status: 0 success, 1 failure, 2 invalid command line or request, 130 interrupted."""


class HelpFormatter(RawDescriptionRichHelpFormatter):
    """Coloured help on terminals. Brackets in texts are literal; titles stay as written."""

    text_markup = False
    group_name_formatter = str

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def execute(argv: Sequence[str]) -> int:
    """Run one command; return the exit status."""
    sys.unraisablehook = interrupt_again
    try:
        status = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # for instance `quintet models | head -1`
        # Python flushes at exit and would report the broken pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    return status


def interrupt_again(lost: "sys.UnraisableHookArgs") -> None:
    """Repeat a Ctrl-C that arrived while an object was being deleted, where Python drops the exception."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        # From another thread and a little later: raised in here, it would be dropped again.
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def _run(argv: Sequence[str]) -> int:
    address, uses_tls = "", False
    try:
        args = _parse(argv)
        uses_tls = bool(args.tls or args.tls_ca or args.tls_cert)
        with _connect(args) as client:
            address = client.address
            return int(args.run(args, client, Terminal(as_json=args.json)))
    except (QuintetError, UsageError) as error:
        return report(error, address, uses_tls=uses_tls)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    if any("\udc80" <= character <= "\udcff" for argument in argv for character in argument):
        raise UsageError("an argument is not valid UTF-8")
    parser = argparse.ArgumentParser(
        prog="quintet",
        usage="quintet COMMAND [argument ...] [option ...]",
        description="Use a Quintet server: classify texts, price houses, chat, ask documents, analyse text.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"quintet {__version__}")
    groups = {"": parser.add_subparsers(title="commands", metavar="COMMAND", prog="quintet", required=True)}
    add_global_options(parser, default=None)

    def add(
        name: str, run: Run, arguments: str, summary: str, examples: str = "", *, has_actions: bool = False
    ) -> argparse.ArgumentParser:
        group, _, last = name.rpartition(" ")
        command = groups[group].add_parser(
            last,
            usage=" ".join(part for part in ("quintet", name, arguments, "[option ...]") if part),
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(run=run)
        if has_actions:
            groups[name] = command.add_subparsers(title="actions", metavar="ACTION", prog=f"quintet {name}")
        add_global_options(command)
        return command

    tasks = (classify, price, chat, documents, add_files, collections, analyze)
    for module in (*tasks, models, server, tenants, grants, usage):
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
    except ValueError as error:  # an unusable key; the message does not show it
        raise UsageError(str(error)) from error
