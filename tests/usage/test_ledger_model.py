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
from server.usage.database import Database, Target
from server.usage.entries import GIVEN_UP, MAX_REPEATS, OpenRow, open_rows, settle_rows, void_rows
from server.usage.instances import beat, leave, reap
from server.usage.ledger import Accounting, Outcome, Selection, Source
from server.usage.queries import records, spent, sums
from server.usage.rows import new_id
from server.usage.tables import INSTANCES
from tests.ledgers import opening, postgres, settlement

__all__ = ["postgres"]  # a fixture
BEGIN = datetime(2026, 11, 29, tzinfo=UTC)
EVER = BEGIN - timedelta(days=1)
NUMBERS = st.integers(0, 2**31 - 1)
COSTS = st.integers(0, 2**50)
SERVERS = st.sampled_from(["a", "b", "c"])
REQUEST_IDS = st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=4)
NOTHING = Accounting(0, 0, 0, Source.UNAVAILABLE, 0, "USD")


@dataclass
class Call:
    """What the model knows of a row."""

    row: OpenRow
    server: str
    outcome: Outcome = Outcome.OPEN
    accounting: Accounting = NOTHING

    @property
    def repeated(self) -> bool:
        return bool(self.row.repeat_of)


class Histories(RuleBasedStateMachine):
    """Three servers on one database. A call is known to the server that opened it, until that is killed."""

    target: Target | None = None
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
            begun = opening(
                request_id,
                tenant=data.draw(st.sampled_from(["t", "u"])),
                request_digest=data.draw(st.sampled_from(["d", "d", "d", "e"])),
                prompt_tokens=data.draw(NUMBERS),
                prompt_micros=data.draw(COSTS),
                brought_id=data.draw(st.sampled_from([True, True, True, False])),
                started=BEGIN + timedelta(seconds=self.seconds),
            )
            wanted.append((new_id(begun.started), begun))
        with self.database.writing() as connection:
            answers = open_rows(connection, server, wanted)
        for (row_id, begun), answer in zip(wanted, answers, strict=True):
            before = [
                call
                for call in self.model.values()
                if begun.brought_id
                and call.row.opening.brought_id
                and (call.row.opening.tenant, call.row.opening.request_id) == (begun.tenant, begun.request_id)
            ]
            charged = (call for call in before if not call.repeated and call.accounting.total_tokens)
            first = next((call for call in charged if call.outcome not in GIVEN_UP), None)
            refused = (
                any(call.row.opening.request_digest != begun.request_digest for call in before)
                or any(call.outcome is Outcome.OPEN for call in before)
                or (first is not None and sum(call.row.repeat_of == first.row.id for call in before) >= MAX_REPEATS)
            )
            assert isinstance(answer, RequestIdReused) == refused
            if isinstance(answer, OpenRow):
                assert answer.earlier == (first.accounting if first else None)
                self.model[row_id] = Call(answer, server)
        return tuple(row_id for row_id, _ in wanted if row_id in self.model)

    @rule(ids=calls, prompt=NUMBERS, completion=NUMBERS, cost=COSTS, outcome=st.sampled_from([*Outcome][1:5]))
    def settle(self, ids: tuple[str, ...], prompt: int, completion: int, cost: int, outcome: Outcome) -> None:
        """Also a second time, and after others took the server for dead."""
        ended = settlement(prompt, completion, cost, outcome=outcome)
        found = [self.model[row_id] for row_id in ids]
        if not found:
            return
        with self.database.writing() as connection:
            settle_rows(connection, found[0].server, [(call.row, ended) for call in found])
        for call in found:
            if call.outcome in (Outcome.OPEN, Outcome.LOST):
                call.outcome = outcome
                call.accounting = replace(ended.accounting, cost_micros=0 if call.repeated else cost)

    @rule(ids=calls)
    def go_away_while_opening(self, ids: tuple[str, ...]) -> None:
        with self.database.writing() as connection:
            void_rows(connection, ids)
        for call in (self.model[row_id] for row_id in ids):
            if call.outcome is Outcome.OPEN:
                call.outcome, call.accounting = Outcome.CANCELLED, replace(NOTHING, source=Source.ESTIMATED)

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
            open_rows(connection, server, [(new_id(BEGIN), opening("w"))])
            raise ZeroDivisionError

    def _lose(self, server: str) -> int:
        found = [call for call in self.model.values() if call.server == server and call.outcome is Outcome.OPEN]
        for call in found:
            begun, call.outcome = call.row.opening, Outcome.LOST
            cost = 0 if call.repeated else begun.prompt_micros
            call.accounting = Accounting(begun.prompt_tokens, 0, 0, Source.ESTIMATED, cost, "USD")
        return len(found)

    @invariant()
    def the_database_says_the_same(self) -> None:
        with self.database.reading() as connection:
            found = records(connection, Selection(), "", 10_000)
            assert [row.id for row in found] == sorted(self.model, reverse=True)
            for row in found:
                call = self.model[row.id]
                assert (row.outcome, row.accounting, row.repeated) == (call.outcome, call.accounting, call.repeated)
                assert (row.ended is None) == (call.outcome is Outcome.OPEN)
            for tenant in ("t", "u"):
                own = [call for call in self.model.values() if call.row.opening.tenant == tenant and not call.repeated]
                open_calls = sum(call.outcome is Outcome.OPEN for call in own)
                assert spent(connection, tenant, None, EVER) == Cost(
                    sum(call.accounting.total_tokens for call in own) + 500 * open_calls,
                    sum(call.accounting.cost_micros for call in own) + 600 * open_calls,
                )
            totals: dict[str, int] = defaultdict(int)
            for call in self.model.values():
                totals[call.row.opening.tenant] += call.accounting.cost_micros
            added: dict[str, int] = defaultdict(int)
            for each in sums(connection, Selection(), 100):
                added[each.tenant] += each.cost_micros
            assert {**added, **totals} == {**totals, **added}

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()


def check(examples: int, target: Target | None = None) -> None:
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
