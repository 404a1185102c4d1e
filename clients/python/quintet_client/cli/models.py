"""`quintet models`, and `load`, `unload`, `reload`, `alias` and `watch`."""

import argparse
from collections.abc import Callable
from contextlib import closing
from datetime import UTC
from functools import partial
from typing import Any

from quintet.v1 import model_pb2

from quintet_client.cli.failures import FAILED, OK
from quintet_client.cli.options import AddCommand
from quintet_client.cli.terminal import Cell, Terminal
from quintet_client.client import QuintetClient
from quintet_client.contract import enum_name

_STYLES = {"ready": "green", "failed": "red"}


def register(add: AddCommand) -> None:
    models = add(
        "models",
        run_models,
        "[NAME]",
        "list the models, or describe one",
        """  quintet models
  quintet models house-prices             features, metrics, licence, version""",
    )
    models.add_argument("name", metavar="NAME", nargs="?", help="the model to describe")
    for name, method, summary in (
        ("load", QuintetClient.load_model, "load a model into memory"),
        ("unload", QuintetClient.unload_model, "free a model's memory until a call needs it"),
        ("reload", QuintetClient.reload_model, "check a model's files again and serve their present content"),
    ):
        command = add(name, partial(_change, method), "NAME", summary)
        command.add_argument("name", metavar="NAME", help="the model")
    alias = add(
        "alias",
        run_alias,
        "NAME ALIAS TARGET",
        "choose the version of a model that is served",
        """  quintet alias sentiment candidate 1-0daa2d59
  quintet alias sentiment current candidate      serve it, if it reproduces its golden outputs
  quintet alias sentiment current previous       roll back""",
    )
    alias.add_argument("name", metavar="NAME", help="the model")
    alias.add_argument("alias", metavar="ALIAS", choices=("current", "candidate"), help="current or candidate")
    alias.add_argument("target", metavar="TARGET", help="a version, or candidate or previous")
    alias.add_argument("--force", action="store_true", help="serve it even if it does not reproduce its golden outputs")
    add("watch", run_watch, "", "follow the models' states until Ctrl-C")


def run_models(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Show a table of all models, or everything about one."""
    if args.name:
        model = client.get_model(args.name).model
        if out.as_json:
            out.json(model)
        else:
            _describe(out, model)
        return OK
    models = client.list_models().models
    out.records(("NAME", "TASK", "STATE", "ENGINE", "SIZE"), models, _row, right="SIZE")
    if not out.as_json:
        write_reasons(out, {model.ref.name: _problem(model) for model in models})
    return OK


def write_reasons(out: Terminal, reasons: dict[str, str]) -> None:
    """Write why models or services do not work."""
    for name, reason in reasons.items():
        if reason:
            out.line(f"{name}: {reason}", "yellow")


def _problem(model: model_pb2.Model) -> str:
    """Why it does not serve, or serves another version than it should."""
    if not model.wanted_version:
        return model.state_message
    return f"version {model.wanted_version} is not served: {model.wanted_message}"


def _row(model: model_pb2.Model) -> list[Cell]:
    state = enum_name(model, "state")
    task = enum_name(model, "task").replace("_", " ")
    return [model.ref.name, task, (state, _STYLES.get(state, "yellow")), model.engine, _size(model)]


def _size(model: model_pb2.Model) -> str:
    return f"{model.size_bytes / 1e6:.1f} MB" if model.size_bytes else "-"


def _memory(model: model_pb2.Model) -> str:
    return f"{model.memory_bytes / 2**20:.0f} MiB" if model.memory_bytes else ""


def _aliases(model: model_pb2.Model) -> str:
    return ", ".join(f"{alias} {version}" for alias, version in sorted(model.aliases.items()))


def _describe(out: Terminal, model: model_pb2.Model) -> None:
    state = enum_name(model, "state")
    out.line(model.ref.name, "bold")
    facts: dict[str, Cell] = {
        "task": enum_name(model, "task").replace("_", " "),
        "state": (f"{state}: {model.state_message}".removesuffix(": "), _STYLES.get(state, "")),
        "engine": model.engine,
        "version": model.ref.version,
        "digest": model.ref.digest,
        "made": f"{model.create_time.ToDatetime(UTC):%Y-%m-%d %H:%M} UTC" if model.HasField("create_time") else "",
        "aliases": _aliases(model),
        "wanted": (f"{model.wanted_version}: {model.wanted_message}" if model.wanted_version else "", "yellow"),
        "size": _size(model),
        "memory": _memory(model),
        "reads": f"at most {model.max_input_tokens} tokens" if model.max_input_tokens else "",
        "licence": model.licence,
        "labels": ", ".join(model.labels),
    }
    out.facts(facts, indent="  ")
    if model.metrics:
        out.line()
        out.table(("METRIC", "VALUE"), [(k, _number(v)) for k, v in sorted(model.metrics.items())], right="VALUE")
    if model.features:
        out.line()
        out.table(("FEATURE", "VALUES"), [(each.name, _values(each)) for each in model.features])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _values(feature: model_pb2.Feature) -> str:
    return ", ".join(feature.allowed_values) or f"{feature.minimum:g} to {feature.maximum:g}"


def _change(method: Callable[..., Any], args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    return _write(out, method(client, args.name).model)


def run_alias(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    return _write(out, client.set_alias(args.name, args.alias, args.target, force=args.force).model)


def run_watch(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Write a line for each model, then one for each change. Status 1 when the server stops."""
    with closing(client.watch_models()) as events:
        for event in events:
            for model in event.snapshot.models or ([event.changed] if event.HasField("changed") else []):
                _write(out, model)
    out.warn("the server stops")
    return FAILED


def _write(out: Terminal, model: model_pb2.Model) -> int:
    parts = (f"{model.ref.name}: {enum_name(model, 'state')}", model.ref.version, _memory(model), _aliases(model))
    out.result(model, "  ".join(part for part in parts if part))
    if model.state_message and not out.as_json:
        out.line(f"  {model.state_message}", "yellow")
    return OK
