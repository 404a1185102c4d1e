"""The benchmark's table and picture tell what was reached and what was not."""

from collections.abc import Mapping
from pathlib import Path

from tests.bench.__main__ import table
from tests.bench.plot import draw
from tests.bench.row import Row, Target
from tests.bench.rows import ROWS
from tests.bench.stand import Stand

FOUND = {"fast": {"calls/s": [2000.0, 900.0, 1000.0], "share": [0.8, 0.95, 0.9], "p99, ms": [3.0, 5.0, 4.0]}}


def measure(stand: Stand) -> Mapping[str, float]:
    return {name: values[0] for name, values in FOUND["fast"].items()}


ROW = Row("fast", measure, (Target("calls/s"), Target("share", at_least=0.85), Target("p99, ms", at_most=2)))


def test_the_table_judges_medians_and_shows_ranges() -> None:
    assert table([ROW], FOUND).splitlines()[3:] == [
        "| fast | calls/s | 1000 | 900 to 2000 |  |  |",
        "| fast | share | 0.9 | 0.8 to 0.95 | >= 0.85 | yes |",
        "| fast | p99, ms | 4 | 3 to 5 | <= 2 | no |",
    ]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw([ROW], FOUND, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_every_row_has_a_name_of_its_own_and_something_to_reach() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(any(target.text for target in row.targets) for row in ROWS if row.name != "Server stacks")
