"""What commands write: text for people, fitted to the terminal, or JSON lines for programs."""

import io
import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TextIO

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

Style = Literal["bold", "dim", "red", "green", "yellow", "cyan"]
_SGR: dict[Style, int] = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "cyan": 36}
# Texts of documents and models could otherwise move the cursor, rename the window or paste into it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_GAP = "  "


class Styled(NamedTuple):
    """A text with its style."""

    text: str
    style: Style | None


Cell = str | Styled


class Terminal:
    """Standard output and standard error. Colours and fitting to the width are for terminals alone."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # in a locale without the characters, better "?" than an end
                stream.reconfigure(errors="replace", encoding="utf-8" if as_json else None)
        self.is_tty = sys.stdout.isatty()
        self.width: int | None = shutil.get_terminal_size().columns if self.is_tty else None

    def line(self, text: str = "", style: Style | None = None) -> None:
        """A line of the result."""
        self.write(paint(clean(text), style, sys.stdout) + "\n")

    def write(self, text: str) -> None:
        """A piece of the result, at once."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """What is good to know and no part of the result: for terminals alone."""
        if self.is_tty and not self.as_json:
            self.line(text, "dim")

    def warn(self, text: str) -> None:
        """What went wrong without ending the command."""
        print(paint(clean(text), "yellow", sys.stderr), file=sys.stderr, flush=True)

    def json(self, value: Message | Mapping[str, Any]) -> None:
        """One JSON object on a line of its own."""
        self.write(json.dumps(as_dict(value) if isinstance(value, Message) else value, ensure_ascii=False) + "\n")

    def table(
        self,
        header: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        *,
        right: str = "",
        indent: str = "",
        with_header: bool = True,
    ) -> None:
        """Aligned columns under their names; those named in `right`, separated by spaces, stand to the right."""
        lines = [[Styled(name, "bold") for name in header], *([_cell(cell) for cell in row] for row in rows)]
        is_right = [name in right.split() for name in header]
        widths = [max(width(cell.text) for cell in column) for column in zip(*lines, strict=True)]
        if self.width is not None:
            shrink(widths, self.width - len(indent), [not flag for flag in is_right])
        for line in lines if with_header else lines[1:]:
            self.write(indent + self._row(line, widths, is_right) + "\n")

    @staticmethod
    def _row(row: Sequence[Styled], widths: Sequence[int], is_right: Sequence[bool]) -> str:
        parts = []
        for (text, style), columns, to_right in zip(row, widths, is_right, strict=True):
            shown = cut(text, columns)
            padding = " " * (columns - width(shown))
            painted = paint(shown, style, sys.stdout)
            parts.append(padding + painted if to_right else painted + padding)
        return _GAP.join(parts).rstrip()

    def paragraph(self, text: str, *, indent: str = "", style: Style | None = None, lines: int | None = None) -> None:
        """Text as words, wrapped to the terminal; the first `lines` of it."""
        wrapped = wrap(text, (self.width or 100) - len(indent))
        shown = wrapped[:lines]
        if len(shown) < len(wrapped):
            shown[-1] = cut(shown[-1] + " …", (self.width or 100) - len(indent))
        for each in shown:
            self.line(indent + each, style)


def as_dict(message: Message) -> dict[str, Any]:
    """The message as JSON has it, with the names of the contract, unset fields included."""
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def paint(text: str, style: Style | None, stream: TextIO) -> str:
    """The text in its style, if the stream is a terminal that wants colours (https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if style is None or plain or not text else f"\x1b[{_SGR[style]}m{text}\x1b[0m"


def clean(text: str) -> str:
    """The text without control characters, except for tabs and line ends."""
    return _CONTROL.sub("", text)


def width(text: str) -> int:
    """Columns that the text takes: 2 for wide characters of East Asia and emoji, none for combining marks."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, columns: int) -> str:
    """The text if it fits, else its beginning with an ellipsis."""
    if width(text) <= columns:
        return text
    used = 0
    for index, character in enumerate(text):
        used += _columns(character)
        if used > columns - 1:
            return text[:index] + "…"
    return text


def shrink(widths: list[int], total: int, may: Sequence[bool]) -> None:
    """Narrow the widest columns, of those that may be narrowed, until all fit into `total`."""
    room = total - len(_GAP) * (len(widths) - 1)
    while sum(widths) > room:
        widest = max((index for index, flag in enumerate(may) if flag), key=widths.__getitem__, default=None)
        if widest is None or widths[widest] <= 1:
            return
        widths[widest] -= 1


def wrap(text: str, columns: int) -> list[str]:
    """Lines of at most `columns`; a word that is longer is broken."""
    lines = [""]
    for word in clean(text).split():
        if lines[-1] and width(lines[-1]) + 1 + width(word) <= columns:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and width(lines[-1]) + _columns(character) > columns:
                lines.append("")
            lines[-1] += character
    return lines


def _cell(cell: Cell) -> Styled:
    """The cell on one line."""
    text, style = cell if isinstance(cell, Styled) else (cell, None)
    return Styled(" ".join(clean(text).split()), style)
