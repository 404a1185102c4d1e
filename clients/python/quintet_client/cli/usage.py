"""`quintet usage`"""

import argparse
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime

from quintet.v1 import common_pb2, usage_pb2

from quintet_client.cli.failures import FAILED, OK
from quintet_client.cli.options import AddCommand, count, duration
from quintet_client.cli.terminal import Cell, Terminal
from quintet_client.client import QuintetClient
from quintet_client.contract import enum_name

_PAGE = 1000  # calls; the contract's maximum
_NUMBERS = "CALLS PROMPT CACHED ANSWER COST"
_CALLS = ("BEGUN (UTC)", "TENANT", "METHOD", "MODEL", "OUTCOME", "PROMPT", "ANSWER", "COST", "REQUEST")


def register(add: AddCommand) -> None:
    usage = add(
        "usage",
        run_usage,
        "",
        "show the tokens and costs of language model calls",
        """  quintet usage                          by day, service and model, of the last 30 days
  quintet usage --since 7d --tenant acme
  quintet usage --calls --limit 20       single calls, newest first
  quintet usage --watch                  calls as they end, until Ctrl-C""",
    )
    what = usage.add_mutually_exclusive_group()
    what.add_argument("--calls", action="store_true", help="list single calls")
    what.add_argument("--watch", action="store_true", help="follow calls as they end; requires the role admin")
    usage.add_argument(
        "--since", metavar="WHEN", type=_moment, help="7d, 24h, 30m, or a day or time such as 2026-11-01; local time"
    )
    usage.add_argument("--tenant", metavar="NAME", help="of this tenant; other tenants need the role admin")
    usage.add_argument("--service", metavar="NAME", help="of this service, for instance ChatService")
    usage.add_argument("--model", metavar="NAME", help="of this model")
    usage.add_argument("--limit", metavar="N", type=count, default=100, help="with --calls; default: 100")


def run_usage(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Show sums, single calls, or calls as they end."""
    if args.watch:
        return _watch(client, out)
    chosen = {name: getattr(args, name) for name in ("since", "tenant", "service", "model")}
    if args.calls:
        out.records(_CALLS, _records(client, chosen, args.limit), _call, right=_NUMBERS)
        return OK
    sums = client.get_usage(**chosen).sums
    if out.as_json:
        for each in sums:
            out.json(each)
    else:
        _show(out, sums)
    return OK


def _show(out: Terminal, sums: Sequence[usage_pb2.UsageSum]) -> None:
    if not sums:
        out.note("no language model calls")
        return
    by_tenant = len({each.tenant for each in sums}) > 1
    header = ("DAY", *(("TENANT",) if by_tenant else ()), "SERVICE", "MODEL", *_NUMBERS.split())
    rows = [
        [each.day, *((each.tenant,) if by_tenant else ()), each.service, each.model, *_numbers([each])] for each in sums
    ]
    empty = [""] * (len(rows[0]) - len(_NUMBERS.split()) - 1)
    for currency in sorted({each.currency for each in sums}):
        rows.append(["total", *empty, *_numbers([each for each in sums if each.currency == currency])])
    out.table(header, rows, right=_NUMBERS)
    if estimated := sum(each.estimated_count for each in sums):
        out.line(f"{estimated:,} calls are estimated, because their providers did not report usage", "dim")


def _numbers(sums: Iterable[usage_pb2.UsageSum]) -> list[str]:
    of = list(sums)
    counts = ("call_count", "prompt_tokens", "cached_tokens", "completion_tokens")
    totals = [f"{sum(getattr(each, name) for each in of):,}" for name in counts]
    return [*totals, money(sum(each.cost_micros for each in of), of[0].currency)]


def _records(client: QuintetClient, chosen: dict[str, object], limit: int) -> Iterator[usage_pb2.UsageRecord]:
    token: str | None = None
    while token != "" and limit > 0:
        page = client.list_usage(**chosen, page_size=min(limit, _PAGE), page_token=token)  # type: ignore[arg-type]
        yield from page.records[:limit]
        limit -= len(page.records)
        token = page.next_page_token


def _watch(client: QuintetClient, out: Terminal) -> int:
    """Write a line for each call. Status 1 when the server stops."""
    with closing(client.watch_usage()) as events:
        for event in events:
            if event.missed_count:
                out.warn(f"{event.missed_count:,} calls were missed")
            if not event.HasField("settled"):
                continue
            if out.as_json:
                out.json(event.settled)
            else:
                out.line("  ".join(cell if isinstance(cell, str) else cell[0] for cell in _call(event.settled)))
    out.warn("the server stops")
    return FAILED


def _call(record: usage_pb2.UsageRecord) -> list[Cell]:
    usage = record.usage
    about = "~" if usage.source == common_pb2.USAGE_SOURCE_ESTIMATED else ""
    outcome = enum_name(record, "outcome")
    return [
        f"{record.start_time.ToDatetime(UTC):%Y-%m-%d %H:%M:%S}",
        record.tenant,
        record.method,
        record.model.name,
        (outcome, {"ok": "green", "open": ""}.get(outcome, "yellow")),
        f"{about}{usage.prompt_tokens:,}",
        f"{about}{usage.completion_tokens:,}",
        "repeated" if record.repeated_request else money(usage.cost_micros, usage.currency),
        record.request_id,
    ]


def money(micros: int, currency: str) -> str:
    """Millionths as a decimal number with two places at least: "12.3456 USD"."""
    whole, part = divmod(abs(micros), 1_000_000)
    places = f"{part:06}".rstrip("0").ljust(2, "0")
    return f"{'-' if micros < 0 else ''}{whole:,}.{places} {currency}"


def _moment(value: str) -> datetime:
    """A time ago, or a time."""
    with contextlib.suppress(ValueError, OverflowError):
        with contextlib.suppress(argparse.ArgumentTypeError):
            return datetime.now(UTC) - duration(value)
        return datetime.fromisoformat(value).astimezone()
    raise argparse.ArgumentTypeError(f"must be 7d, 24h, 30m, or a day or time such as 2026-11-01, not {value!r}")
