"""`quintet load`, `unload`, `reload`, `alias` and `watch`: which models are in memory, and in which version"""

import argparse
from contextlib import closing

from quintet.v1 import model_pb2

from quintet_client.cli.failures import FAILED, OK
from quintet_client.cli.options import AddCommand
from quintet_client.cli.terminal import Terminal
from quintet_client.client import QuintetClient
from quintet_client.contract import enum_name


def register(add: AddCommand) -> None:
    """Add the commands."""
    for name, run, summary in (
        ("load", run_load, "bring a model into memory"),
        ("unload", run_unload, "take a model out of memory until it is needed"),
        ("reload", run_reload, "check a model's files again and serve what they are now"),
    ):
        add(name, run, "NAME", summary, f"  quintet {name} sentiment").add_argument("name", metavar="NAME")
    alias = add(
        "alias",
        run_alias,
        "NAME ALIAS TARGET",
        "say which version of a model is served",
        """  quintet alias sentiment candidate 1-0daa2d59
  quintet alias sentiment current candidate      serve it, if it answers its golden inputs as it should
  quintet alias sentiment current previous       roll back""",
    )
    alias.add_argument("name", metavar="NAME", help="the model")
    alias.add_argument("alias", metavar="ALIAS", choices=("current", "candidate"), help="current or candidate")
    alias.add_argument("target", metavar="TARGET", help="a version, or candidate or previous")
    alias.add_argument("--force", action="store_true", help="serve it even if its golden inputs give other outputs")
    add("watch", run_watch, "", "follow the models' states until Ctrl-C", "  quintet watch\n  quintet watch --json")


def run_load(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Load."""
    return _tell(out, client.load_model(args.name).model)


def run_unload(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Unload."""
    return _tell(out, client.unload_model(args.name).model)


def run_reload(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Reload."""
    return _tell(out, client.reload_model(args.name).model)


def run_alias(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Move an alias."""
    return _tell(out, client.set_alias(args.name, args.alias, args.target, force=args.force).model)


def run_watch(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """A line a model, then a line a change. Status 1 when the server stops."""
    with closing(client.watch_models()) as events:
        for event in events:
            for model in event.snapshot.models or ([event.changed] if event.HasField("changed") else []):
                _tell(out, model)
    out.warn("the server stops")
    return FAILED


def _tell(out: Terminal, model: model_pb2.Model) -> int:
    if out.as_json:
        out.json(model)
        return OK
    aliases = ", ".join(f"{alias} {version}" for alias, version in sorted(model.aliases.items()))
    memory = f"{model.memory_bytes / 2**20:.0f} MiB" if model.memory_bytes else ""
    parts = (f"{model.ref.name}: {enum_name(model, 'state')}", model.ref.version, memory, aliases)
    out.line("  ".join(part for part in parts if part))
    if model.state_message:
        out.line(f"  {model.state_message}", "yellow")
    return OK
