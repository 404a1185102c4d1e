"""A small campaign against the ledger; `make chaos-ledger` is the long one."""

from pathlib import Path

from tests.campaigns.chaos_ledger.campaign import run


async def test_the_books_agree(models: Path, tmp_path: Path) -> None:
    told: list[str] = []
    books, sent = await run(tmp_path, models, 120, seed=5, report=told.append)
    assert books.faults == []
    assert sum("restarted" in line for line in told) == 2
    assert sum("killed" in line for line in told) == 1
    assert books.rows >= books.served > 20
    assert books.exact_tokens == books.exact_served > 0
    assert sent.codes["OK"] > 0
    assert sent.codes["CANCELLED"] > 0
