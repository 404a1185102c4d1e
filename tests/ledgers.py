"""What tests of the ledger share: fixtures, to be imported, and values."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from server.usage.ledger import Accounting, Opening, Outcome, Settlement, Source
from tests import postgres as programs
from tests.postgres import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with programs.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return tmp_path / "state" / "ledger.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


def opening(request_id: str = "r-1", **changes: Any) -> Opening:
    values: dict[str, Any] = {
        "tenant": "acme",
        "key_id": "k1",
        "request_id": request_id,
        "request_digest": "d",
        "brought_id": True,
        "service": "ChatService",
        "method": "Chat",
        "model": "gpt",
        "model_digest": "",
        "provider": "cloud",
        "prompt_tokens": 10,
        "prompt_micros": 5,
        "reserved_tokens": 500,
        "reserved_micros": 600,
        "price_version": "2026-11",
        "currency": "USD",
        "started": datetime.now(UTC),
    }
    return Opening(**{**values, **changes})


def settlement(
    prompt: int = 11,
    completion: int = 3,
    cost: int = 7,
    *,
    outcome: Outcome = Outcome.OK,
    source: Source = Source.PROVIDER,
) -> Settlement:
    accounting = Accounting(prompt, 0, completion, source, cost, "USD")
    return Settlement(accounting, outcome, "cloud", "gpt", "gpt-2026", "", "2026-11", datetime.now(UTC))
