"""The comparison, for people."""

from statistics import mean, median

from tests.campaigns.chaos_ledger.books import Books
from tests.campaigns.chaos_ledger.traffic import Sent

_SHOWN = 20


def show(books: Books, sent: Sent, seed: int, seconds: float) -> None:
    """Print it."""
    calls = sum(sent.attempts.values())
    print(f"\n{calls} calls in {seconds:.0f} s, seed {seed}")
    _table("answers", sorted(sent.codes.items(), key=lambda item: -item[1]))
    _table("rows by outcome", sorted(books.outcomes.items(), key=lambda item: -item[1]))
    _table(
        "reconciliation",
        [
            ("rows in the ledger", books.rows),
            ("requests served by providers", books.served),
            ("tokens of exact rows, ledger", books.exact_tokens),
            ("tokens of exact rows, providers", books.exact_served),
            ("estimated rows", books.estimated_rows),
            ("tokens of estimated rows, ledger", books.estimated_tokens),
            ("tokens of estimated rows, providers", books.estimated_served),
            ("cost, millionths", books.cost_micros),
        ],
    )
    if books.errors:
        sizes = [abs(error) for error in books.errors]
        print(
            f"\nerror of an estimated call in tokens: mean {mean(books.errors):+.1f}, "
            f"median of sizes {median(sizes):g}, largest {max(sizes)}"
        )
    for fault in books.faults[:_SHOWN]:
        print(f"FAULT  {fault}")
    print(f"\n{len(books.faults)} faults" if books.faults else "\nthe books agree")


def _table(title: str, rows: list[tuple[str, int]]) -> None:
    print(f"\n{title}")
    for name, number in rows:
        print(f"  {name:38}{number:>12,}")
