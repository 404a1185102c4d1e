"""The ledger's SQL against a model of it, over random histories of calls and servers: no row is lost, none is there
twice, none is charged twice, and money stays whole.
"""

import contextlib
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import update

from server.domain.errors import RequestIdReused
from server.domain.money import Cost
from server.domain.usage import Entry, Opened, Outcome, Selection, Usage, UsageSource
from server.usage.database import Database
from server.usage.entries import BROKEN_OFF, MAX_REPEATS, beat, leave, open_rows, reap, settle_rows, void_rows
from server.usage.queries import entries, spent, sums
from server.usage.tables import INSTANCES
from tests.ledgers import entry, postgres, settled

__all__ = ["postgres"]  # a fixture
BEGIN = datetime(2026, 11, 29, tzinfo=UTC)
EVER = BEGIN - timedelta(days=1)
NUMBERS = st.integers(0, 2**31 - 1)
COSTS = st.integers(0, 2**50)
SERVERS = st.sampled_from(["a", "b", "c"])
REQUEST_IDS = st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=4)
NOTHING = Usage(0, 0, UsageSource.UNAVAILABLE, 0, "USD")


@dataclass
class Call:
    """What the model knows of a row."""

    entry: Entry
    server: str
    outcome: Outcome = Outcome.OPEN
    usage: Usage = NOTHING

    @property
    def repeated(self) -> bool:
        return bool(self.entry.repeat_of)


class Histories(RuleBasedStateMachine):
    """Three servers on one database. A call is known to the server that opened it, until that is killed."""

    target: Path | str | None = None
    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.database = Database(self.target or Path(self.folder.name) / "ledger.sqlite")
        self.model: dict[str, Call] = {}
        self.seconds = 0
        with self.database.writing() as connection:
            for each in ("a", "b", "c"):
                beat(connection, each)
            # The same PostgreSQL serves all histories.
            connection.exec_driver_sql("DELETE FROM quintet_calls")

    @rule(
        target=calls,
        server=SERVERS,
        ids=st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=4),
        data=st.data(),
    )
    def open(self, server: str, ids: list[str], data: st.DataObject) -> tuple[str, ...]:
        """Several in one transaction."""
        wanted = []
        for request_id in ids:
            self.seconds += 1
            begun = entry(
                request_id,
                tenant=data.draw(st.sampled_from(["t", "u"])),
                request_digest=data.draw(st.sampled_from(["d", "d", "d", "e"])),
                own_prompt_tokens=data.draw(NUMBERS),
                own_prompt_micros=data.draw(COSTS),
                brought_id=data.draw(st.sampled_from([True, True, True, False])),
                started=BEGIN + timedelta(seconds=self.seconds),
            )
            wanted.append(begun)
        with self.database.writing() as connection:
            answers = open_rows(connection, server, wanted)
        for begun, answer in zip(wanted, answers, strict=True):
            before = [
                call
                for call in self.model.values()
                if begun.brought_id
                and call.entry.brought_id
                and (call.entry.tenant, call.entry.request_id) == (begun.tenant, begun.request_id)
            ]
            charged = (call for call in before if not call.repeated and call.usage.total_tokens)
            first = next((call for call in charged if call.outcome not in BROKEN_OFF), None)
            refused = (
                any(call.entry.request_digest != begun.request_digest for call in before)
                or any(call.outcome is Outcome.OPEN for call in before)
                or (first is not None and sum(call.entry.repeat_of == first.entry.id for call in before) >= MAX_REPEATS)
            )
            assert isinstance(answer, RequestIdReused) == refused
            if isinstance(answer, Opened):
                assert answer.earlier == (first.usage if first else None)
                self.model[begun.id] = Call(answer.entry, server)
        return tuple(begun.id for begun in wanted if begun.id in self.model)

    @rule(ids=calls, prompt=NUMBERS, completion=NUMBERS, cost=COSTS, outcome=st.sampled_from([*Outcome][1:5]))
    def settle(self, ids: tuple[str, ...], prompt: int, completion: int, cost: int, outcome: Outcome) -> None:
        """Also a second time, and after others took the server for dead."""
        found = [self.model[row_id] for row_id in ids]
        if not found:
            return
        with self.database.writing() as connection:
            ended = [settled(call.entry, prompt, completion, cost, outcome=outcome) for call in found]
            settle_rows(connection, found[0].server, ended)
        for call in found:
            if call.outcome in (Outcome.OPEN, Outcome.LOST):
                call.outcome = outcome
                call.usage = Usage(prompt, completion, UsageSource.PROVIDER, 0 if call.repeated else cost)

    @rule(ids=calls)
    def go_away_while_opening(self, ids: tuple[str, ...]) -> None:
        with self.database.writing() as connection:
            void_rows(connection, ids)
        for call in (self.model[row_id] for row_id in ids):
            if call.outcome is Outcome.OPEN:
                call.outcome, call.usage = Outcome.CANCELLED, replace(NOTHING, source=UsageSource.ESTIMATED)

    @rule(server=SERVERS)
    def be_silent_and_lost(self, server: str) -> None:
        """A server says nothing for long; others look; then it is back."""
        others = {"a", "b", "c"} - {server}
        with self.database.writing() as connection:
            connection.execute(update(INSTANCES).where(INSTANCES.c.id == server).values(beat=0))
            for other in others:
                beat(connection, other)
            assert reap(connection, 600.0) == self._lose(server)
            assert reap(connection, 600.0) == 0
            beat(connection, server)

    @rule(server=SERVERS)
    def stop(self, server: str) -> None:
        with self.database.writing() as connection:
            assert leave(connection, server) == self._lose(server)
            beat(connection, server)

    @rule(server=SERVERS)
    def fail_to_commit(self, server: str) -> None:
        """Nothing of it stays."""
        with contextlib.suppress(ZeroDivisionError), self.database.writing() as connection:
            open_rows(connection, server, [entry("w")])
            raise ZeroDivisionError

    def _lose(self, server: str) -> int:
        found = [call for call in self.model.values() if call.server == server and call.outcome is Outcome.OPEN]
        for call in found:
            begun, call.outcome = call.entry, Outcome.LOST
            cost = 0 if call.repeated else begun.own_prompt_micros
            call.usage = Usage(begun.own_prompt_tokens, 0, UsageSource.ESTIMATED, cost, "USD")
        return len(found)

    @invariant()
    def the_database_says_the_same(self) -> None:
        with self.database.reading(lambda: False) as connection:
            found = entries(connection, Selection(), "", 10_000)
            assert [row.id for row in found] == sorted(self.model, reverse=True)
            for row in found:
                call = self.model[row.id]
                assert (row.outcome, row.usage, bool(row.repeat_of)) == (call.outcome, call.usage, call.repeated)
                assert (row.ended is None) == (call.outcome is Outcome.OPEN)
            for tenant in ("t", "u"):
                own = [call for call in self.model.values() if call.entry.tenant == tenant and not call.repeated]
                open_calls = sum(call.outcome is Outcome.OPEN for call in own)
                assert spent(connection, tenant, None, EVER) == Cost(
                    sum(call.usage.total_tokens for call in own) + 500 * open_calls,
                    sum(call.usage.cost_micros for call in own) + 600 * open_calls,
                )
            totals: dict[str, int] = defaultdict(int)
            for call in self.model.values():
                totals[call.entry.tenant] += call.usage.cost_micros
            added: dict[str, int] = defaultdict(int)
            for each in sums(connection, Selection(), 100):
                added[each.tenant] += each.cost_micros
            assert {**added, **totals} == {**totals, **added}

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()


def check(examples: int, target: Path | str | None = None) -> None:
    class Here(Histories):
        pass

    Here.target = target
    configured: Any = settings(
        max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=[*HealthCheck]
    )
    run_state_machine_as_test(Here, settings=configured)


def test_sqlite() -> None:
    check(15)


def test_postgres(request: pytest.FixtureRequest) -> None:
    check(5, request.getfixturevalue("postgres").new_database())
