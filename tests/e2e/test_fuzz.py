"""Mutated requests to every method, and broken HTTP/2; `make fuzz` sends a million."""

from pathlib import Path

from tests.campaigns.fuzz.__main__ import run


def test_no_request_is_an_internal_error(models: Path, tmp_path: Path) -> None:
    found, status = run(tmp_path, models.parent, seed=7, payloads=3_000, seconds=20)
    assert status == 0
    assert found.faults == []
    assert found.sent >= 3_000
    assert found.breaks > 10
    assert found.codes["OK"] > 30
