"""`quintet models`, `quintet health` and `quintet info`"""

import argparse
import contextlib
from datetime import UTC, datetime

from quintet.v1 import model_pb2

from quintet_client.cli.failures import FAILED, OK
from quintet_client.cli.options import AddCommand, seconds
from quintet_client.cli.terminal import Cell, Style, Styled, Terminal
from quintet_client.client import QuintetClient
from quintet_client.contract import SERVICES, enum_name
from quintet_client.errors import DeadlineExceeded, QuintetError

_STYLES: dict[str, Style] = {
    "ready": "green",
    "SERVING": "green",
    "failed": "red",
    "NOT_SERVING": "red",
    "SERVICE_UNKNOWN": "red",
}


def register(add: AddCommand) -> None:
    """Add the commands."""
    models = add(
        "models",
        run_models,
        "[NAME]",
        "list the models, or describe one",
        """  quintet models
  quintet models house-prices             features, metrics, licence, version""",
    )
    models.add_argument("name", metavar="NAME", nargs="?", help="the model to describe")
    health = add(
        "health",
        run_health,
        "",
        "say which services answer; status 0 if all do, else 1",
        """  quintet health
  quintet health --wait 60 && quintet classify "I love it\"""",
    )
    health.add_argument("--wait", metavar="SECONDS", type=seconds, help="wait until all services answer")
    add("info", run_info, "", "show the server's version and limits", "  quintet info\n  quintet info --json")


def run_models(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """A table of all models, or everything about one."""
    if args.name:
        model = client.get_model(args.name).model
        if args.json:
            out.json(model)
        else:
            _describe(out, model)
        return OK
    models = client.list_models().models
    if args.json:
        for model in models:
            out.json(model)
        return OK
    out.table(("NAME", "TASK", "STATE", "ENGINE", "SIZE"), map(_row, models), right="SIZE")
    _tell_reasons(out, {model.ref.name: model.state_message for model in models})
    return OK


def _row(model: model_pb2.Model) -> list[Cell]:
    task = enum_name(model, "task").replace("_", " ")
    return [model.ref.name, task, _state(enum_name(model, "state")), model.engine, _size(model)]


def _state(state: str) -> Styled:
    return Styled(state, _STYLES.get(state, "yellow"))


def _size(model: model_pb2.Model) -> str:
    """Megabytes, as disks are sold."""
    return f"{model.size_bytes / 1e6:.1f} MB" if model.size_bytes else "-"


def _describe(out: Terminal, model: model_pb2.Model) -> None:
    state = enum_name(model, "state")
    facts = {
        "task": enum_name(model, "task").replace("_", " "),
        "state": f"{state}: {model.state_message}" if model.state_message else state,
        "engine": model.engine,
        "version": model.ref.version,
        "digest": model.ref.digest,
        "made": _when(model.create_time.ToDatetime(UTC)) if model.HasField("create_time") else "",
        "aliases": ", ".join(f"{alias} {version}" for alias, version in sorted(model.aliases.items())),
        "size": _size(model),
        "memory": f"{model.memory_bytes / 2**20:.0f} MiB" if model.memory_bytes else "",
        "reads": f"{model.max_input_tokens} tokens at most" if model.max_input_tokens else "",
        "licence": model.licence,
        "labels": ", ".join(model.labels),
    }
    out.line(model.ref.name, "bold")
    for name, value in facts.items():
        if value:
            out.line(f"  {name:8} {value}", _STYLES.get(state) if name == "state" else None)
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


def run_health(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Every service of the contract, as grpc.health.v1 has it, so that a full server answers too."""
    if args.wait:
        with contextlib.suppress(DeadlineExceeded):  # what follows says what is missing
            client.wait_ready(args.wait)
    is_ready = client.health("ready") == "SERVING"
    states = {service: client.health(service) for service in SERVICES}
    reasons = {} if is_ready else _reasons(client)
    if args.json:
        for service, state in states.items():
            out.json({"service": service, "status": state, "message": reasons.get(service, "")})
    else:
        out.table(("SERVICE", "STATE"), [(service, _state(state)) for service, state in states.items()])
        _tell_reasons(out, reasons)
    return OK if is_ready else FAILED


def _reasons(client: QuintetClient) -> dict[str, str]:
    """Why services do not answer, from a server that is not too busy to say so."""
    try:
        return {service.name: service.message for service in client.server_info().services}
    except QuintetError:
        return {}


def _tell_reasons(out: Terminal, reasons: dict[str, str]) -> None:
    for name, reason in reasons.items():
        if reason:
            out.line(f"{name}: {reason}", "yellow")


def run_info(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Version, uptime, limits."""
    info = client.server_info()
    if args.json:
        out.json(info)
        return OK
    started, now = info.start_time.ToDatetime(UTC), info.current_time.ToDatetime(UTC)
    facts = {
        "server": f"quintet {info.version} at {client.address}",
        "contract": info.api_version,
        "commit": info.git_commit,
        "started": f"{_when(started)}, {str(now - started).split('.', maxsplit=1)[0]} ago",
        "requests": f"{info.limits.max_request_bytes:,} bytes at most",
        "calls": f"{info.limits.max_concurrent_calls:,} at once",
        "deadline": f"{info.limits.default_deadline_seconds} s for calls without one",
        "serving": f"{sum(service.serving for service in info.services)} of {len(info.services)} services",
    }
    for name, value in facts.items():
        if value:
            out.line(f"{name:9} {value}")
    for warning in info.warnings:
        out.line(warning, "yellow")
    return OK


def _when(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
