"""The FAQ set: documentation of four projects as documents, and their own frequently asked questions as queries.

The answer to a question is the section under its heading. That heading is not indexed, so that a question must be
matched with the answer's text. Other sections may answer too and were not judged: the measures are lower bounds, good
for comparisons.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_MIN_WORDS = 5  # shorter sections are left out

# A heading has an adornment below, and maybe above. Adornments are ranked in the order of their first use on a page.
_ADORNMENT = re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}\s*")
_DIRECTIVE = re.compile(r"\s*\.\. (?:\|[^|]+\| )?([\w:-]+)::\s*(.*)")
_COMMENT = re.compile(r"\s*\.\.(?:\s|$)")
_OPTION = re.compile(r"\s+:[\w-]+:.*")
# Directives whose content is text, and those whose argument is text. All others are left out.
_BODIES = {
    *("note", "warning", "admonition", "tip", "seealso", "sidebar", "topic", "important", "hint", "caution"),
    *("versionadded", "versionchanged", "deprecated", "code-block", "sourcecode", "parsed-literal", "console"),
    *("data", "function", "class", "method", "attribute", "setting", "signal", "describe", "glossary", "rubric"),
    *("option", "exception", "reqmeta", "topic", "versionremoved", "class-based", "table", "container", "tab"),
}
_ARGUMENTS = _BODIES - {"code-block", "sourcecode", "parsed-literal", "console", "glossary", "container"}
_INLINE = (
    (re.compile(r":[\w:+.-]+:`[~.][\w.]*?(\w+)(\(\))?`"), r"\1\2"),  # :class:`~django.http.HttpResponse`
    (re.compile(r":[\w:+.-]+:`_\w*\.([^`]*)`"), r"\1"),  # :class:`_engine.Engine`
    (re.compile(r"(?::[\w:+.-]+:)?`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # :ref:`text <label>`, `text <address>`_
    (re.compile(r":[\w:+.-]+:`!?([^`]*)`"), r"\1"),
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"(?<![\w*])\*\*([^\s*](?:[^*]*[^\s*])?)\*\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^\s*](?:[^*]*[^\s*])?)\*(?![\w*])"), r"\1"),
    (re.compile(r"::$", re.MULTILINE), ":"),
)


class Docs(NamedTuple):
    """Where a project keeps its documentation: folders and files below `root`, and which of them are its FAQ."""

    input: str
    root: str
    parts: tuple[str, ...]
    faq: str


# Reference lists, which are made from code, and changelogs are left out.
PROJECTS = (
    Docs("django-docs", "django-5.2.19/docs", ("faq", "topics", "howto", "intro", "misc"), "faq/"),
    Docs("scrapy-docs", "scrapy-2.19.0/docs", ("intro", "topics", "faq.rst", "contributing.rst"), "faq.rst"),
    Docs(
        "celery-docs",
        "celery-5.7.0/docs",
        ("faq.rst", "getting-started", "userguide", "tutorials", "django", "contributing.rst"),
        "faq.rst",
    ),
    Docs(
        "sqlalchemy-docs",
        "sqlalchemy-2.1.9/doc/build",
        ("faq", "core", "orm", "dialects", "tutorial", "intro.rst", "errors.rst", "glossary.rst"),
        "faq/",
    ),
)


@dataclass(frozen=True)
class Section:
    """The text between two headings; `question` is the question of the FAQ that it answers, if any."""

    id: str
    title: str
    text: str
    question: str = ""


def read_sections(archive: Path, docs: Docs) -> Iterator[Section]:
    """The sections of a project's documentation, read from its source distribution."""
    pages = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isreg() or path.suffix not in {".rst", ".txt"} or not path.is_relative_to(docs.root):
                continue
            below = path.relative_to(docs.root)
            if below.parts[0] in docs.parts and (file := tar.extractfile(member)):
                pages[below.as_posix()] = file.read().decode()
    for name in sorted(pages):
        yield from split_page(f"{docs.input}/{name}", pages[name], is_faq=name.startswith(docs.faq))


def split_page(name: str, source: str, *, is_faq: bool) -> Iterator[Section]:
    """The sections of one page of reStructuredText that have some text.

    On a page of a FAQ, the highest heading with a question mark sets the level of questions. Other headings of that
    level ("I can't log in") are questions, too, and deeper headings are parts of their answers.
    """
    parts = list(_parts(source.splitlines()))
    page = next((part.heading for part in parts if part.heading), "")
    question_level = min((part.level for part in parts if is_faq and part.heading.endswith("?")), default=None)
    question = ""
    for number, (level, heading, lines) in enumerate(parts):
        if question_level is not None and level <= question_level:
            question = heading if level == question_level else ""
        is_named = heading not in ("", page, question)  # the question must not be in its answer's title
        text = plain(lines)
        if len(text.split()) >= _MIN_WORDS:
            yield Section(f"{name}#{number}", f"{page}: {heading}" if is_named else page, text, question)


class Part(NamedTuple):
    """A heading with the lines below it. The page's title has level 0."""

    level: int
    heading: str
    lines: list[str]


def _parts(lines: list[str]) -> Iterator[Part]:
    """The page's parts; the first may have no heading."""
    ranks: list[tuple[str, bool]] = []
    part = Part(0, "", [])
    index = 0
    while index < len(lines):
        if found := _heading(lines, index):
            text, style, length = found
            yield part
            if style not in ranks:
                ranks.append(style)
            part = Part(ranks.index(style), inline(text), [])
            index += length
        else:
            part.lines.append(lines[index])
            index += 1
    yield part


def _heading(lines: list[str], index: int) -> tuple[str, tuple[str, bool], int] | None:
    """The heading that begins at this line: its text, its style, how many lines it takes."""
    over = _ADORNMENT.fullmatch(lines[index])
    text_at = index + 1 if over else index
    if text_at + 1 >= len(lines):
        return None
    text, under = lines[text_at], _ADORNMENT.fullmatch(lines[text_at + 1])
    is_text = bool(text.strip()) and not _ADORNMENT.fullmatch(text) and (bool(over) or not text[0].isspace())
    if not under or not is_text or len(under[0].rstrip()) < len(text.strip()) * 0.8:
        return None
    if over and over[1] != under[1]:
        return None
    return text.strip(), (under[1], bool(over)), 3 if over else 2


def plain(lines: list[str]) -> str:
    """The text of reStructuredText without the names of directives, options, targets and markup."""
    text: list[str] = []
    skipped_indent: int | None = None  # the indent of a directive whose content is left out
    in_options = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if skipped_indent is not None and (not line.strip() or indent > skipped_indent):
            continue
        skipped_indent = None
        if in_options and _OPTION.fullmatch(line):
            continue
        in_options = False
        if directive := _DIRECTIVE.fullmatch(line):
            name = directive[1].rsplit(":", 1)[-1]
            in_options = name in _BODIES
            if name in _ARGUMENTS and directive[2]:
                text += ["", directive[2]]
            if name not in _BODIES:
                skipped_indent = indent
        elif _COMMENT.match(line):
            skipped_indent = indent
        else:
            text.append(line.strip())
    return re.sub(r"\n{3,}", "\n\n", inline("\n".join(text))).strip()


def inline(text: str) -> str:
    """Text without roles, emphasis and targets."""
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text
