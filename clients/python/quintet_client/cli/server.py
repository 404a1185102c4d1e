"""`quintet health` and `quintet info`."""

import argparse
import contextlib
from collections.abc import Sequence
from datetime import UTC

from quintet.v1 import model_pb2

from quintet_client.cli.failures import FAILED, OK
from quintet_client.cli.models import write_reasons
from quintet_client.cli.options import AddCommand, seconds
from quintet_client.cli.terminal import Cell, Terminal
from quintet_client.client import QuintetClient
from quintet_client.contract import SERVICES
from quintet_client.errors import DeadlineExceeded, QuintetError


def register(add: AddCommand) -> None:
    health = add(
        "health",
        run_health,
        "",
        "say which services answer, and why others do not; status 0 if all that are required do, else 1",
        """  quintet health
  quintet health --wait 60 && quintet classify "I love it\"""",
    )
    health.add_argument("--wait", metavar="SECONDS", type=seconds, help="wait until all services answer")
    add(
        "info",
        run_info,
        "",
        "show the server's version, limits and problems; status 0 if all required services answer, else 1",
    )


def run_health(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Show every service by grpc.health.v1, which an overloaded server answers too, and why those that are down are."""
    if args.wait:
        with contextlib.suppress(DeadlineExceeded):  # the table shows which service is missing
            client.wait_ready(args.wait)
    is_ready = client.health("ready") == "SERVING"
    states = {service: client.health(service) for service in SERVICES}
    known = _known(client)
    states |= {each.name: "SERVING" if each.serving else "NOT_SERVING" for each in known if each.name not in states}
    reasons = {each.name: each.message for each in known if states[each.name] != "SERVING"}
    if out.as_json:
        for service, state in states.items():
            out.json({"service": service, "status": state, "message": reasons.get(service, "")})
    else:
        rows = [(service, (state, "green" if state == "SERVING" else "red")) for service, state in states.items()]
        out.table(("SERVICE", "STATE"), rows)
        write_reasons(out, reasons)
    return OK if is_ready and all(states[each.name] == "SERVING" for each in known if each.required) else FAILED


def _known(client: QuintetClient) -> Sequence[model_pb2.ServiceStatus]:
    """What the server says of its services; nothing if it is too busy to say, or does not say it to this caller."""
    try:
        return client.server_info().services
    except QuintetError:
        return []


def run_info(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    info = client.server_info()
    status = OK if all(service.serving for service in info.services if service.required) else FAILED
    if out.as_json:
        out.json(info)
        return status
    started, now = info.start_time.ToDatetime(UTC), info.current_time.ToDatetime(UTC)
    facts: dict[str, Cell] = {
        "server": f"quintet {info.version} at {client.address}",
        "contract": info.api_version,
        "commit": info.git_commit,
        "started": f"{started:%Y-%m-%d %H:%M} UTC, {str(now - started).split('.', maxsplit=1)[0]} ago",
        "requests": f"{info.limits.max_request_bytes:,} bytes at most",
        "calls": f"{info.limits.max_concurrent_calls:,} at once",
        "deadline": f"{info.limits.default_deadline_seconds} s for calls without one",
        "serving": f"{sum(service.serving for service in info.services)} of {len(info.services)} services",
    }
    out.facts(facts)
    write_reasons(out, {service.name: service.message for service in info.services if not service.serving})
    for warning in info.warnings:
        out.line(warning, "yellow")
    return status
