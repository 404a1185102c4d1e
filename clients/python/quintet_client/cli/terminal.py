"""Output of the commands: text for people, fitted to the terminal, or JSON lines for programs."""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

# Texts of documents and models could otherwise move the cursor, rename the window or paste into it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PIPE_COLUMNS = 100_000  # without a terminal, tables are not cut
_PARAGRAPH_COLUMNS = 100  # and paragraphs are wrapped here
Cell = str | tuple[str, str]  # a text, or a text and its style
M = TypeVar("M", bound=Message)


def console_of(stream: TextIO) -> Console:
    """Rich's view of a stream: colours and the width count only for terminals. Obeys https://no-color.org."""
    is_tty = stream.isatty()
    is_plain = not is_tty or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return Console(
        file=stream,
        force_terminal=is_tty,
        color_system=None if is_plain else "standard",
        width=None if is_tty else _PIPE_COLUMNS,
        markup=False,
        highlight=False,
        emoji=False,
    )


class Terminal:
    """Standard output and standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # print "?" for characters that the locale lacks
                stream.reconfigure(errors="replace", encoding="utf-8" if as_json else None)
        self.is_tty = sys.stdout.isatty()
        self._console = console_of(sys.stdout)

    def write(self, text: str) -> None:
        """Write a piece of the result at once."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """Write a line of the result."""
        self.write(_render(self._console, Text(clean(text), style)))

    def note(self, text: str) -> None:
        """Write a remark that is not part of the result; only on terminals."""
        if self.is_tty and not self.as_json:
            self.line(text, "dim")

    def warn(self, text: str) -> None:
        """Report a problem that does not end the command."""
        to_stderr((text, "yellow"))

    def json(self, value: Message | Mapping[str, Any]) -> None:
        """Write one JSON object on a line of its own."""
        self.write(json.dumps(as_dict(value) if isinstance(value, Message) else value, ensure_ascii=False) + "\n")

    def result(self, message: Message, text: str) -> None:
        """Write a message as JSON, or the sentence that says it."""
        if self.as_json:
            self.json(message)
        else:
            self.line(text)

    def records(
        self, header: Sequence[str], messages: Iterable[M], row: Callable[[M], Sequence[Cell]], *, right: str = ""
    ) -> None:
        """Write messages as JSON, or as the rows of a table."""
        if self.as_json:
            for message in messages:
                self.json(message)
        else:
            self.table(header, map(row, messages), right=right)

    def facts(self, facts: Mapping[str, Cell], *, indent: str = "") -> None:
        """Write a line for each name and value; empty values are left out."""
        grid = Table.grid(padding=(0, 1))
        for name, value in facts.items():
            if text := _text(value, no_wrap=False):
                grid.add_row(_text(name), text)
        self._write_table(grid, indent)

    def table(
        self,
        header: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        *,
        right: str = "",
        indent: str = "",
        with_header: bool = True,
    ) -> None:
        """Write aligned columns. Those named in `right` (separated by spaces) are right-aligned and never cut."""
        titles = [_text((name, "bold")) for name in header]
        cells = [[_text(cell) for cell in row] for row in rows]
        table = Table(box=None, pad_edge=False, header_style="")
        for title, *column in zip(titles, *cells, strict=True):
            if title.plain in right.split():
                width = max(each.cell_len for each in (title, *column))
                table.add_column(title, justify="right", no_wrap=True, min_width=width)
            else:
                table.add_column(title)
        for row in cells:
            table.add_row(*row)
        self._write_table(table, indent, skipped=0 if with_header else 1)

    def _write_table(self, table: Table, indent: str, skipped: int = 0) -> None:
        lines = _render(self._console, table, self._console.width - len(indent)).splitlines()
        self.write("".join(f"{indent}{line.rstrip()}\n" for line in lines[skipped:]))

    def paragraph(self, text: str, *, indent: str = "", lines: int | None = None) -> None:
        """Write text wrapped to the terminal; only the first `lines` of it."""
        columns = (self._console.width if self.is_tty else _PARAGRAPH_COLUMNS) - len(indent)
        wrapped = _text(text, no_wrap=False).wrap(self._console, columns)
        shown = wrapped[:lines]
        if len(shown) < len(wrapped):
            shown[-1].rstrip()
            shown[-1].append(" …")
            shown[-1].truncate(columns, overflow="ellipsis")
        for each in shown:
            self.line(indent + each.plain.rstrip())


def to_stderr(*parts: tuple[str, str]) -> None:
    """Write a line of texts, each with its style, to standard error."""
    text = Text.assemble(*((clean(text), style) for text, style in parts))
    sys.stderr.write(_render(console_of(sys.stderr), text))
    sys.stderr.flush()


def as_dict(message: Message) -> dict[str, Any]:
    """The message as JSON has it, with the contract's field names, unset fields included."""
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def clean(text: str) -> str:
    """The text without control characters, except for tabs and line ends."""
    return _CONTROL.sub("", text)


def _text(cell: Cell, *, no_wrap: bool = True) -> Text:
    """The cell on one line, cut with an ellipsis where it does not fit."""
    text, style = cell if isinstance(cell, tuple) else (cell, "")
    found = Text(" ".join(clean(text).split()), no_wrap=no_wrap, overflow="ellipsis" if no_wrap else "fold")
    found.stylize(style)  # unlike Text(..., style), without the padding
    return found


def _render(console: Console, what: RenderableType, columns: int | None = None) -> str:
    """As text with escape sequences. Without `columns`, long lines are left to the terminal."""
    with console.capture() as captured:
        console.print(what, width=columns, soft_wrap=columns is None, crop=False)
    return captured.get()
