"""`quintet health` and `quintet info`."""

import argparse
import contextlib
from datetime import UTC

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
        "say which services answer; status 0 if all do, else 1",
        """  quintet health
  quintet health --wait 60 && quintet classify "I love it\"""",
    )
    health.add_argument("--wait", metavar="SECONDS", type=seconds, help="wait until all services answer")
    add("info", run_info, "", "show the server's version and limits")


def run_health(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Show every service by grpc.health.v1, which an overloaded server answers too."""
    if args.wait:
        with contextlib.suppress(DeadlineExceeded):  # the table shows which service is missing
            client.wait_ready(args.wait)
    is_ready = client.health("ready") == "SERVING"
    states = {service: client.health(service) for service in SERVICES}
    reasons = {} if is_ready else _reasons(client)
    if out.as_json:
        for service, state in states.items():
            out.json({"service": service, "status": state, "message": reasons.get(service, "")})
    else:
        rows = [(service, (state, "green" if state == "SERVING" else "red")) for service, state in states.items()]
        out.table(("SERVICE", "STATE"), rows)
        write_reasons(out, reasons)
    return OK if is_ready else FAILED


def _reasons(client: QuintetClient) -> dict[str, str]:
    """Why services do not answer; empty if the server is too busy to say."""
    try:
        return {service.name: service.message for service in client.server_info().services}
    except QuintetError:
        return {}


def run_info(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    info = client.server_info()
    if out.as_json:
        out.json(info)
        return OK
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
    for warning in info.warnings:
        out.line(warning, "yellow")
    return OK
