"""Extracts text from plain, Markdown, HTML and PDF files. HTML and PDF need the extra `ingest`."""

import logging
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from quintet_client.cli.charsets import Undecodable, decode_page, decode_text
from quintet_client.cli.web_pages import extract

MAX_FILE_BYTES = 64 * 1024 * 1024
_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)(?:\s+#*)?\s*$")
_SENTENCE_END = re.compile(r"[.!?:;…\"'”’)\]]\s*\Z")
# Control characters, and the lone surrogates that a PDF's character table may yield.
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class Unusable(Exception):
    """A file that cannot become a document; the message is the reason."""


class Parsed(NamedTuple):
    """A file's text, and its title or an empty one."""

    title: str
    text: str


def parse(file: Path) -> Parsed:
    """Extract the text. Raises Unusable, or OSError if the file cannot be read."""
    if not file.is_file():
        raise Unusable("not a file")
    if (size := file.stat().st_size) > MAX_FILE_BYTES:
        raise Unusable(f"too large: {size / 1e6:.0f} MB; at most {MAX_FILE_BYTES / 1e6:.0f} MB are read")
    title, text = PARSERS.get(file.suffix.lower(), _plain)(file)
    text = _NO_TEXT.sub("", text)
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise Unusable("no text")
    return Parsed(" ".join(_NO_TEXT.sub("", title).split()), text)


def _plain(file: Path) -> Parsed:
    return Parsed("", _decode(file.read_bytes()))


def _markdown(file: Path) -> Parsed:
    """The title is the first heading."""
    text = _decode(file.read_bytes())
    in_code = False
    for line in text.splitlines():
        if _FENCE.match(line):
            in_code = not in_code
        elif not in_code and (heading := _HEADING.match(line)):
            return Parsed(heading[1], text)
    return Parsed("", text)


def _decode(content: bytes, decode: Callable[[bytes], str] = decode_text) -> str:
    try:
        return decode(content)
    except Undecodable as error:
        raise Unusable(str(error)) from error


def _html(file: Path) -> Parsed:
    """The title and the text of the page's main content."""
    source = _decode(file.read_bytes(), decode_page)
    parser = _extra("selectolax.lexbor").LexborHTMLParser
    return Parsed(*extract(source, parser, is_xml=file.suffix.lower() == ".xhtml"))


def _pdf(file: Path) -> Parsed:
    """The text layer of all pages."""
    pypdf = _extra("pypdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it logs every flaw that it can repair
    try:
        reader = pypdf.PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unusable("encrypted: it needs a password")
        title = str((reader.metadata and reader.metadata.title) or "")
        pages = [page.extract_text() for page in reader.pages]
    except (Unusable, OSError):
        raise
    except pypdf.errors.DependencyError as error:
        raise Unusable("encrypted with AES; needs: pip install cryptography") from error
    except Exception as error:  # a damaged file may fail in any way
        raise Unusable(f"damaged: {' '.join(str(error).split())[:80] or type(error).__name__}") from error
    text = ""
    for page in pages:
        text += ("\n\n" if _SENTENCE_END.search(text) else "\n") + page.strip()
    if not text.strip():
        raise Unusable("no text layer; is it scanned?")
    return Parsed(title, re.sub(r"(?<=[a-zà-ÿ])-\n(?=[a-zà-ÿ])", "", text).strip())


def _extra(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise Unusable("needs: pip install 'quintet-client[ingest]'") from error


PARSERS: dict[str, Callable[[Path], Parsed]] = {
    ".txt": _plain,
    ".text": _plain,
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".pdf": _pdf,
}
