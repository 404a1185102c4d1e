"""The ledger beside what the providers wrote down."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quintet.v1 import common_pb2, usage_pb2

from tests.campaigns.chaos_ledger.provider import Provider, Served
from tests.campaigns.chaos_ledger.traffic import Sent

PROVIDER, ESTIMATED = common_pb2.USAGE_SOURCE_PROVIDER, common_pb2.USAGE_SOURCE_ESTIMATED


@dataclass
class Books:
    """The comparison. `faults` are sentences; there must be none. Tokens are of calls whose rows have that source."""

    rows: int = 0
    served: int = 0
    exact_tokens: int = 0
    exact_served: int = 0
    estimated_rows: int = 0
    estimated_tokens: int = 0
    estimated_served: int = 0
    errors: list[int] = field(default_factory=list)  # estimated less served, a call
    cost_micros: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    faults: list[str] = field(default_factory=list)


def compare(
    records: Sequence[usage_pb2.UsageRecord],
    providers: Mapping[str, Provider],
    sent: Sent,
    cost: Mapping[str, tuple[int, int]],
) -> Books:
    """Every row against what was served. `cost`: millionths for a token of prompt and of answer, by provider."""
    books = Books(rows=len(records))
    if len({record.id for record in records}) != len(records):
        books.faults.append("an id stands in the ledger twice")
    by_call: defaultdict[str, list[usage_pb2.UsageRecord]] = defaultdict(list)
    for record in records:
        by_call[record.request_id].append(record)
        books.outcomes[usage_pb2.UsageOutcome.Name(record.outcome).removeprefix("USAGE_OUTCOME_").lower()] += 1
        _check_row(record, cost, books)
    for call in by_call.keys() | {call for provider in providers.values() for call in provider.served}:
        served = [entry for provider in providers.values() for entry in provider.served.get(call, ())]
        _check_call(call, by_call[call], served, sent, books)
    for call, usages in sent.usages.items():
        _check_reported(call, usages, by_call[call], books)
    return books


def _check_row(record: usage_pb2.UsageRecord, cost: Mapping[str, tuple[int, int]], books: Books) -> None:
    usage = record.usage
    books.cost_micros += usage.cost_micros
    if record.outcome == usage_pb2.USAGE_OUTCOME_OPEN:
        books.faults.append(f"{record.request_id}: still open")
    if usage.total_tokens != usage.prompt_tokens + usage.completion_tokens:
        books.faults.append(f"{record.request_id}: the total is not the sum")
    prompt, completion = cost.get(record.provider, (0, 0))
    due = 0 if record.repeated_request else prompt * usage.prompt_tokens + completion * usage.completion_tokens
    if usage.cost_micros != due:
        books.faults.append(f"{record.request_id}: costs {usage.cost_micros}, not {due}")


def _check_call(
    call: str, rows: Sequence[usage_pb2.UsageRecord], served: Sequence[Served], sent: Sent, books: Books
) -> None:
    counted = sum(row.usage.total_tokens for row in rows)
    billed = sum(entry.prompt_tokens + entry.completion_tokens for entry in served)
    answers = sum(not entry.lost for entry in served)  # a call that goes on with another provider has one row
    books.served += answers
    if len(rows) < answers:
        books.faults.append(f"{call}: served {answers} times, but {len(rows)} rows")
    if len(rows) > sent.attempts[call]:
        books.faults.append(f"{call}: sent {sent.attempts[call]} times, but {len(rows)} rows")
    if sum(not row.repeated_request and row.usage.cost_micros > 0 for row in rows) > 1:
        books.faults.append(f"{call}: charged twice")
    if all(row.usage.source == PROVIDER for row in rows):
        books.exact_tokens += counted
        books.exact_served += billed
        if counted != billed:
            books.faults.append(f"{call}: {counted} tokens in the ledger, {billed} served")
    else:
        books.estimated_rows += sum(row.usage.source != PROVIDER for row in rows)
        books.estimated_tokens += counted
        books.estimated_served += billed
        books.errors.append(counted - billed)
        if all(entry.reported_usage and entry.complete for entry in served) and served and len(rows) == len(served):
            late = {usage_pb2.USAGE_OUTCOME_CANCELLED, usage_pb2.USAGE_OUTCOME_DEADLINE, usage_pb2.USAGE_OUTCOME_LOST}
            if not late.intersection(row.outcome for row in rows):
                books.faults.append(f"{call}: estimated, although the provider reported usage")


def _check_reported(
    call: str, usages: Sequence[common_pb2.Usage], rows: Sequence[usage_pb2.UsageRecord], books: Books
) -> None:
    """Callers got the usage that the ledger has, and the same again when they repeated a request."""
    charged = [row.usage for row in rows if not row.repeated_request and row.outcome == usage_pb2.USAGE_OUTCOME_OK]
    for usage in usages:
        if usage.total_tokens and usage not in charged:
            books.faults.append(f"{call}: the caller got {usage.total_tokens} tokens, which no row has")
