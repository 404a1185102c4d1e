"""What tests of the ledger share: fixtures, to be imported, and values."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from server.domain.models import ModelIdentity
from server.domain.usage import Entry, Opened, Outcome, Usage, UsageSource, new_id
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


def entry(request_id: str = "r-1", **changes: Any) -> Entry:
    """A call that begins now."""
    started = changes.setdefault("started", datetime.now(UTC))
    values: dict[str, Any] = {
        "id": new_id(started),
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
        "own_prompt_tokens": 10,
        "own_prompt_micros": 5,
        "reserved_tokens": 500,
        "reserved_micros": 600,
        "price_version": "2026-11",
        "usage": Usage(0, 0, UsageSource.UNAVAILABLE),
    }
    return Entry(**{**values, **changes})


def used(prompt: int = 11, completion: int = 3, cost: int = 7, source: UsageSource = UsageSource.PROVIDER) -> Usage:
    return Usage(prompt, completion, source, cost)


def settled(
    opened: Opened | Entry,
    prompt: int = 11,
    completion: int = 3,
    cost: int = 7,
    *,
    outcome: Outcome = Outcome.OK,
    source: UsageSource = UsageSource.PROVIDER,
) -> Entry:
    """The call after its end."""
    model = ModelIdentity("gpt", "gpt-2026", "")
    usage = used(prompt, completion, cost, source)
    begun = opened.entry if isinstance(opened, Opened) else opened
    return begun.settled(usage, outcome, provider="cloud", model=model, price_version="2026-11")
