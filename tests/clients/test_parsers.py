"""Extracting text from files, and the reasons for skipping others."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quintet_client.cli import parsers
from quintet_client.cli.files import split
from quintet_client.cli.parsers import Parsed, Unusable, parse

from tests.clients.pdf_files import write_pdf

PAGE = """<!doctype html><html><head><title>Leave &amp;
 holidays</title><style>p { color: red }</style></head>
<body><header>Intranet</header><nav><a href="/">Home</a></nav>
<main><header><h1>Leave</h1></header>
<p>You have <b>thirty</b>   days<br>a year.</p>
<ul><li>Five of them<li>can be carried over</ul>
<pre>  ask
    first</pre>
<table><tr><th>year<td>30</tr></table>
<script>track()</script><aside>Also read</aside></main>
<footer>© 2024</footer></body></html>"""


def read(tmp_path: Path, name: str, content: str | bytes) -> Parsed:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return parse(path)


def reason(path: Path) -> str:
    with pytest.raises(Unusable) as error:
        parse(path)
    return str(error.value)


def test_html_is_its_content_as_a_browser_shows_it(tmp_path: Path) -> None:
    title, text = read(tmp_path, "a.html", PAGE)
    assert title == "Leave & holidays"
    assert text.split("\n\n") == [
        "Leave",
        "You have thirty days\na year.",
        "Five of them",
        "can be carried over",
        "  ask\n    first",
        "year 30",
    ]


def test_html_without_a_main_part(tmp_path: Path) -> None:
    one = "<nav>menu</nav><article>The story.</article><div>Comments</div>"
    assert read(tmp_path, "a.htm", one).text == "The story."
    several = "<header>Site</header><h1>News</h1><article>One.</article><article>Two.</article>"
    assert read(tmp_path, "b.htm", several) == ("News", "News\n\nOne.\n\nTwo.")


def test_html_that_nests_deeper_than_python_calls(tmp_path: Path) -> None:
    assert read(tmp_path, "a.html", "<div>" * 5000 + "deep").text == "deep"


def test_html_in_the_encoding_that_it_names(tmp_path: Path) -> None:
    page = '<meta charset="iso-8859-1"><p>café'
    assert read(tmp_path, "a.html", page.encode("latin-1")).text == "café"
    path = tmp_path / "b.html"
    path.write_bytes(b'<meta charset="no-such"><p>caf\xe9')
    assert reason(path) == "neither UTF-8 nor no-such, which it declares"


def test_text_with_a_byte_order_mark(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        assert read(tmp_path, "a.txt", "día".encode(encoding)).text == "día"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("intro\n\n## The  title ##\n# Later", "The title"),
        ("```sh\n# a comment\n```\n# Title", "Title"),
        ("#hashtag\n\ntext", ""),
    ],
)
def test_titles_of_markdown(tmp_path: Path, text: str, title: str) -> None:
    assert read(tmp_path, "a.md", text) == (title, text)


def test_pdf(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    write_pdf(path, "Leave is thirty days.", "It can be car-\nried over and\nover again", "and so on.", title="Leave")
    title, text = parse(path)
    assert title == "Leave"
    assert text == "Leave is thirty days.\n\nIt can be carried over and\nover again\nand so on."


def test_pdf_that_only_its_owner_may_change(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    write_pdf(path, "Everyone may read this.", owner="secret")
    assert parse(path).text == "Everyone may read this."


def test_pdfs_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    write_pdf(path, "Secret.", password="secret")
    assert reason(path) == "encrypted: it needs a password"
    write_pdf(path)
    assert reason(path) == "no text layer; is it scanned?"
    path.write_bytes(b"%PDF-1.7 and nothing else")
    assert reason(path).startswith("damaged: ")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no text"),
        (" \n\u00a0\u200b\ufeff".encode(), "no text"),
        (b"text\x00text", "binary"),
        (b"caf\xe9", "not UTF-8 (byte 3)"),
        (b"\xff\xfe\x00", "not UTF-16 (byte 2)"),
    ],
)
def test_texts_that_cannot_be_read(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert reason(path) == why


def test_too_large_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(parsers.MAX_FILE_BYTES + 1)  # takes no room on the disk
    assert reason(path) == "too large: 67 MB; at most 67 MB are read"
    os.mkfifo(tmp_path / "pipe.txt")
    assert reason(tmp_path / "pipe.txt") == "not a file"


@pytest.mark.parametrize(("name", "module"), [("a.html", "selectolax.lexbor"), ("a.pdf", "pypdf")])
def test_without_the_extra(tmp_path: Path, name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    (tmp_path / name).write_text("text")
    assert reason(tmp_path / name) == "needs: pip install 'quintet-client[ingest]'"


@settings(deadline=None, max_examples=25)
@given(st.binary(max_size=300))
def test_no_content_breaks_a_parser(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    for suffix in parsers.PARSERS:
        try:
            title, text = read(folder, f"a{suffix}", content)
        except Unusable:
            continue
        assert (title + text).encode()


PIECES = st.lists(st.sampled_from(["word ", "End. ", "\n", "\n\n", "x" * 30, "  "]), max_size=40)


@settings(deadline=None, max_examples=50)
@given(PIECES, st.integers(10, 60))
def test_parts_have_all_of_the_text_where_they_say(pieces: list[str], limit: int) -> None:
    text = "".join(pieces)
    parts = list(split(text, limit))
    end = 0
    for start, part in parts:
        assert 1 <= len(part) <= limit
        assert part == part.strip() == text[start : start + len(part)]
        assert not text[end:start].strip()
        end = start + len(part)
    assert not text[end:].strip()


def test_parts_end_at_the_best_border() -> None:
    paragraphs = "One two three.\nFour five.\n\nSix seven eight. Nine"
    assert [part for _, part in split(paragraphs, 40)] == ["One two three.\nFour five.", "Six seven eight. Nine"]
    assert [part for _, part in split("One two. Three four five", 14)] == ["One two.", "Three four", "five"]
    assert [part for _, part in split("x" * 25, 10)] == ["x" * 10, "x" * 10, "x" * 5]
