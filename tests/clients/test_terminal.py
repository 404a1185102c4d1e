"""Fitting text to a terminal, for any text."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quintet_client.cli.terminal import Terminal, clean
from rich.cells import cell_len

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(columns: int) -> tuple[Terminal, io.StringIO]:
    """Output as on a terminal of this width, without colours."""
    with pytest.MonkeyPatch.context() as patch:
        stream = FakeTerminal()
        patch.setattr("sys.stdout", stream)
        patch.setenv("NO_COLOR", "1")
        patch.setenv("COLUMNS", str(columns))
        return Terminal(as_json=False), stream


@settings(deadline=None)
@given(TEXTS, st.integers(2, 40), st.integers(1, 3))
def test_wrapped_text_fits_and_loses_nothing(text: str, columns: int, first: int) -> None:
    terminal, stream = on_terminal(columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        terminal.paragraph(text)
        lines = stream.getvalue().splitlines()
        assert all(cell_len(line) <= columns for line in lines)
        assert "".join("".join(lines).split()) == "".join(clean(text).split())
        terminal.paragraph(text, lines=first)
    assert len(stream.getvalue().splitlines()) == len(lines) + min(len(lines), first)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 10**9)), max_size=5), st.integers(3, 120))
def test_a_table_fits_and_has_a_line_for_every_row(rows: list[tuple[str, str, int]], columns: int) -> None:
    terminal, stream = on_terminal(columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        terminal.table(
            ("ONE", "OTHER", "NUMBER"), [(one, other, str(number)) for one, other, number in rows], right="NUMBER"
        )
    header, *lines = stream.getvalue().split("\n")[:-1]
    assert len(lines) == len(rows)
    assert columns < 30 or all(cell_len(line) <= columns for line in lines)
    assert all(line.endswith(f" {number}") for line, (_, _, number) in zip(lines, rows, strict=True)), "never cut"
    assert len({cell_len(line) for line in lines} | {cell_len(header)}) == 1, "aligned"


def test_without_a_terminal_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(as_json=False).table(("TEXT", "LABEL"), [("日本語 " * 500, ("good", "green"))])
    assert capsys.readouterr().out.splitlines()[1] == "日本語 " * 499 + "日本語  good"
