"""`quintet usage`."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from quintet_client import QuintetClient
from quintet_client.cli.usage import money

from tests.clients.conftest import Quintet
from tests.clients.small_server import SmallServer
from tests.clients.test_cli import json_lines


def test_sums(in_process: Quintet) -> None:
    done = in_process("usage")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "DAY         TENANT  SERVICE      MODEL  CALLS     PROMPT  CACHED  ANSWER           COST",
        "2026-11-29  acme    ChatService  rules  1,204  1,234,567   1,000  89,012    12.3456 USD",
        "2026-11-28  zen     RagService   rules      1          0       0       0   0.000035 USD",
        "total                                   1,205  1,234,567   1,000  89,012  12.345635 USD",
        "3 calls are estimated, because their providers did not report usage",
    ]


def test_sums_of_one_tenant(in_process: Quintet, server: SmallServer) -> None:
    done = in_process("usage", "--tenant", "zen", "--since", "7d", "--service", "RagService", "--model", "rules")
    assert done.stdout.splitlines() == [
        "DAY         SERVICE     MODEL  CALLS  PROMPT  CACHED  ANSWER          COST",
        "2026-11-28  RagService  rules      1       0       0       0  0.000035 USD",
        "total                              1       0       0       0  0.000035 USD",
    ]
    request: Any = server.recorder.seen[-1].request
    assert (request.filter.tenant, request.filter.service, request.filter.model) == ("zen", "RagService", "rules")
    week = datetime.now(UTC) - timedelta(days=7)
    assert abs(request.filter.start_time.ToDatetime(UTC) - week) < timedelta(minutes=1)
    assert in_process("usage", "--tenant", "nobody").stdout == ""
    assert [each["tenant"] for each in json_lines(in_process("usage", "--json").stdout)] == ["acme", "zen"]


def test_calls(in_process: Quintet, server: SmallServer) -> None:
    done = in_process("usage", "--calls")
    assert done.stdout.splitlines() == [
        "BEGUN (UTC)          TENANT  METHOD  MODEL  OUTCOME    PROMPT  ANSWER      COST  REQUEST",
        "2026-05-28 20:26:43  acme    Chat    rules  ok          1,003       3  repeated  r-3",
        "2026-05-28 20:26:42  acme    Chat    rules  cancelled  ~1,002      ~2  3.00 USD  r-2",
        "2026-05-28 20:26:41  acme    Chat    rules  ok          1,001       1  1.50 USD  r-1",
    ]
    assert len(in_process("usage", "--calls", "--limit", "2").stdout.splitlines()) == 3
    assert [each["request_id"] for each in json_lines(in_process("usage", "--calls", "--json").stdout)] == [
        *("r-3", "r-2", "r-1")
    ]


def test_watching(in_process: Quintet) -> None:
    done = in_process("usage", "--watch")
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["r-1", "r-2"]
    assert (done.returncode, done.stderr) == (1, "7 calls were missed\nthe server stops\n")


@pytest.mark.parametrize("since", ["yesterday", "7", "d", "2026-13-01", "9999999d", "999999d"])
def test_invalid_times(in_process: Quintet, since: str) -> None:
    done = in_process("usage", "--since", since)
    assert done.returncode == 2
    assert "must be 7d, 24h, 30m, or a day or time" in done.stderr


def test_times_of_the_client(server: SmallServer) -> None:
    begin, end = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 2, 1)
    with QuintetClient(server.address) as client:
        client.list_usage(since=begin, until=end, request_id="r", page_size=7)
    request: Any = server.recorder.seen[0].request
    assert request.filter.start_time.ToDatetime(UTC) == begin
    assert request.filter.end_time.ToDatetime(UTC) == end.astimezone(UTC)
    assert (request.request_id, request.page_size) == ("r", 7)


def test_money() -> None:
    amounts = (0, 1, 35, 10_000, 1_500_000, 1_234_567_890_123, -20_000)
    assert [money(amount, "EUR") for amount in amounts] == [
        *("0.00 EUR", "0.000001 EUR", "0.000035 EUR", "0.01 EUR", "1.50 EUR", "1,234,567.890123 EUR", "-0.02 EUR")
    ]
