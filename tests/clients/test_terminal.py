"""Fitting text to a terminal, for any text."""

import io
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quintet_client.cli.terminal import Terminal, clean, cut, shrink, width, wrap

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("日本", 4), ("e\u0301", 1), ("\u200b", 0), ("🎉", 2)])
def test_width(text: str, columns: int) -> None:
    assert width(text) == columns


@settings(deadline=None)
@given(TEXTS, st.integers(1, 40))
def test_cut_text_fits_and_is_its_beginning(text: str, columns: int) -> None:
    short = cut(text, columns)
    assert width(short) <= columns
    assert short == text or (short.endswith("…") and text.startswith(short[:-1]) and width(text) > columns)


@settings(deadline=None)
@given(TEXTS, st.integers(2, 40))
def test_wrapped_text_fits_and_loses_nothing(text: str, columns: int) -> None:
    lines = wrap(text, columns)
    assert all(width(line) <= columns for line in lines)
    assert "".join("".join(lines).split()) == "".join(clean(text).split())


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=6), st.integers(1, 80))
def test_columns_are_narrowed_only_as_far_as_needed(columns: list[tuple[int, bool]], total: int) -> None:
    before = [each for each, _ in columns]
    after = before.copy()
    shrink(after, total, [may for _, may in columns])
    room = total - 2 * (len(columns) - 1)
    assert all(b <= a and (may or a == b) for a, b, (_, may) in zip(before, after, columns, strict=True))
    if sum(before) <= room:
        assert after == before
    elif sum(after) != room:
        assert sum(after) > room, "more than needed was taken away"
        assert all(b == 1 for b, (_, may) in zip(after, columns, strict=True) if may)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5))
def test_a_table_has_a_line_for_every_row(rows: list[tuple[str, str]]) -> None:
    real, sys.stdout = sys.stdout, io.StringIO()
    try:
        Terminal(as_json=False).table(("LEFT", "RIGHT"), rows, right="RIGHT")
        lines = sys.stdout.getvalue().split("\n")
    finally:
        sys.stdout = real
    assert len(lines) == len(rows) + 2
    full = {width(line) for line, (_, right) in zip(lines[1:], rows, strict=False) if right.strip() and clean(right)}
    assert len(full) <= 1 or any(not width(" ".join(clean(right).split())) for _, right in rows)
