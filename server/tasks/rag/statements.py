"""The statements of a passage: its sentences, table rows and list items, each with what stands above it."""

import re
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

from server.domain.rag import Passage
from server.tasks.rag.scanner import terms_of, unit_of
from server.tasks.rag.terms import ANY_UNIT, Terms
from server.tasks.rag.vocabulary import FUNCTION_WORDS, REFERENCE

_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*")
_UNDERLINE = re.compile(r"={3,}|-{3,}|~{3,}|\^{3,}")
_RULE = re.compile(r"[\s|:+=-]*(?:---|===)[\s|:+=-]*")
_ITEM = re.compile(r"\s*(?:[-*•·]|\d{1,2}[.)])\s+")
_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)»*_`]*\s+(?=[^a-zà-ÿ\s])|(?<=[。！？])[」』”’）)]*\s*")
_ENDS = re.compile(r"[.!?:。！？：;；][\"'”’)»」』]*\Z")
_LEADS = (":", "：")
# A blank line, before a heading, and where a table begins or ends.
_BLOCK = re.compile(r"\n[^\S\n]*\n|\n(?=#{1,6}\s)|(?m:^)(?<=[^|\n]\n)(?=\s*\|)|(?<=\|\n)(?=[^|\s])")
_LABEL = re.compile(r"[`*_]*([^\W\d_][\w'’ -]{1,40}?)[`*_]*(?:：|(?::|\s[–—-]{1,2})\s+)(?=\S)")
_WORD = re.compile(r"[^\W_]")
MAX_STATEMENTS = 100  # of a passage, which has 900 code points: more are no text
_MAX_ITEMS = 20  # of a list that an answer may sum up
_PLAIN = re.compile(r"[^\W\d_]+(?:[ ,/'’&-]{1,2}[^\W\d_]+)*")  # what a heading without a mark looks like
_SHORT = 80  # code points of a line that can be a heading or a row of a table that lost its form
_COLUMNS = re.compile(r"\s*\|\s*|\t+|\s{2,}")


class Cell(NamedTuple):
    """A cell of a table with the name of its column."""

    column: str
    text: str


class Context:
    """What names the subject of statements: `headings`, and `lines`, such as the sentence that one refers to."""

    def __init__(self, headings: Sequence[str], lines: Sequence[str] = (), *, refers: bool = False) -> None:
        self.refers = refers  # whether the last line is a sentence that this one refers to
        self.headings = tuple(filter(None, headings))
        self.lines = tuple(filter(None, lines))
        self.heading_terms = terms_of("\n".join(self.headings))
        self.terms = self.heading_terms | terms_of("\n".join(self.lines))

    def below(self, *lines: str) -> "Context":
        """The context of what stands below these lines, too."""
        return Context(self.headings, (*self.lines, *lines)) if any(lines) else self

    def referring(self, sentence: str) -> "Context":
        """The context of a sentence that refers to the one before it."""
        return Context(self.headings, (*self.lines, sentence), refers=True)

    def labelled(self, text: str) -> "Context":
        """The context of a text that begins with a label: "Aspirin: adults take ..."."""
        match = _LABEL.match(text)
        if not match or match[1].split()[0].casefold() in FUNCTION_WORDS:
            return self
        return Context((*self.headings, match[1]), self.lines)


class Statement:
    """A sentence, or a row of `cells`, or several sentences or items together, its `parts`."""

    def __init__(
        self, text: str, context: Context, cells: tuple[Cell, ...] = (), parts: tuple["Statement", ...] = ()
    ) -> None:
        self.text = text
        self.context = context
        self.cells = cells
        self.parts = parts
        self.terms = _row_terms(cells) if cells else Terms() if parts else terms_of(text)
        for part in parts:
            self.terms |= part.terms
        self.told = self.terms | context.heading_terms
        self.all = self.terms | context.terms

    @property
    def key(self) -> str:
        """What a row is about: its first cell."""
        return self.cells[0].text if self.cells else ""


def _row_terms(cells: tuple[Cell, ...]) -> Terms:
    """Terms of a row; a number without a unit has that of its column, as in "Weight (kg)"."""
    found = Terms()
    for column, text in cells:
        terms = terms_of(text)
        unit = next(filter(None, map(unit_of, re.split(r"[\s()（）\[\],]+", column))), "")
        terms.numbers = [number._replace(unit=number.unit or unit or ANY_UNIT) for number in terms.numbers]
        found |= terms
    return found


def statements_of(passage: Passage) -> Iterator[Statement]:
    """The first MAX_STATEMENTS of a passage, with pairs of sentences of which one alone may say half."""
    return islice(_statements(passage), MAX_STATEMENTS)


def _statements(passage: Passage) -> Iterator[Statement]:
    headings: list[tuple[int, str]] = [(0, passage.title)]
    context = Context([passage.title])
    short: list[str] = []  # the short lines in a row before this one
    lead = ""  # the line before a blank line that leads a list
    for block in _BLOCK.split(passage.text):
        lines = [line for line in block.splitlines() if line.strip()]
        while found := _heading(lines):
            level, heading, count = found
            # A heading of the first level names another subject than the title.
            headings = [(rank, text) for rank, text in headings if rank < level and (rank or level > 1)]
            headings.append((level, heading))
            context = Context([text for _, text in headings])
            lines, short = lines[count:], []
        if not lines:
            continue
        if len(lines) == 1 and len(lines[0]) <= _SHORT and not _ENDS.search(lines[0]) and "|" not in lines[0]:
            # A heading without a mark, or a row of a table of which each became a paragraph: the first one says what
            # the others mean.
            yield Statement(lines[0], context.below(*short[:1]))
            short.append(lines[0] if _PLAIN.fullmatch(lines[0]) else "")
            continue
        yield from _block(lines, context.below(lead, *short[: len(short) == 1]))
        lead = lines[-1] if lines[-1].rstrip().endswith(_LEADS) else ""
        short = []


def _heading(lines: list[str]) -> tuple[int, str, int] | None:
    """The heading that begins the lines, by a mark before or a line below it: its level, its text, how many lines."""
    if lines and (match := _HEADING.fullmatch(lines[0].strip())):
        return len(match[1]), match[2], 1
    if len(lines) > 1 and _UNDERLINE.fullmatch(lines[1]) and len(lines[0].strip()) <= _SHORT:
        return 1 + "=-~^".find(lines[1][0]), lines[0].strip(), 2
    return None


def _block(lines: list[str], context: Context) -> Iterator[Statement]:
    """A paragraph, a list, or a table."""
    if rows := _table(lines):
        header, *rows = rows
        columns = context.below(*header)
        for row in rows:
            yield Statement(" | ".join(row), columns, tuple(Cell(*pair) for pair in zip(header, row, strict=True)))
        return
    items: list[str] = []
    for line in lines:
        match = _ITEM.match(line)
        if match or not items or items[-1].endswith(_LEADS):
            items.append(line[match.end() :].strip() if match else line.strip())
        else:
            items[-1] = f"{items[-1]} {line.strip()}"
    led = context
    for item in items:
        yield from _sentences(item, led.labelled(item))
        if item.endswith(_LEADS):
            led = context.below(item)
    if 1 < len(items) <= _MAX_ITEMS:
        yield Statement(" ; ".join(items), led, parts=tuple(Statement(item, led) for item in items))


def _sentences(text: str, context: Context) -> Iterator[Statement]:
    found: list[Statement] = []
    for sentence in filter(_WORD.search, map(str.strip, _SENTENCE.split(text))):
        refers = found and REFERENCE.match(sentence)
        found.append(Statement(sentence, context.referring(found[-1].text) if refers else context))
    yield from found
    for first, second in pairwise(found):
        yield Statement(f"{first.text} {second.text}", context, parts=(first, second))


def _table(lines: list[str]) -> list[list[str]]:
    """The rows of a table, the first with the names of columns, or nothing if the lines are no table."""
    rules = [line for line in lines if _RULE.fullmatch(line)]
    starts = [match.start() for match in re.finditer(r"[=-]{2,}", rules[0])] if rules and "|" not in rules[0] else []
    rows = [_cells(line, starts) for line in lines if line not in rules]
    if len(rows) < 2 or len(rows[0]) < 2 or any(_ENDS.search(line) for line in lines if "|" not in line):
        return []
    fitting = [row for row in rows if len(row) == len(rows[0])]
    return fitting if rules or len(fitting) == len(rows) else []


def _cells(line: str, starts: list[int]) -> list[str]:
    """The cells of a row: between "|", tabs or wide gaps, or as the columns of a line of "=" begin."""
    if len(starts) < 2:
        return _COLUMNS.split(line.strip().strip("|").strip())
    return [line[start:end].strip() for start, end in pairwise((*starts, None))]
