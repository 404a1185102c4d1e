"""Extracts text from plain, Markdown, HTML and PDF files. HTML and PDF need the extra `ingest`."""

import codecs
import logging
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

MAX_FILE_BYTES = 64 * 1024 * 1024
_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)(?:\s+#*)?\s*$")
_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_SENTENCE_END = re.compile(r"[.!?:;…\"'”’)\]]\s*\Z")
# Control characters, and the lone surrogates that a PDF's character table may yield.
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

_NOT_CONTENT = "script, style, noscript, template, svg, iframe, nav, aside, footer, form, button, [hidden]"
_INLINE = frozenset(
    {
        *("a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd"),
        *("label", "mark", "q", "ruby", "rp", "rt", "s", "samp", "small", "span", "strike", "strong", "sub", "sup"),
        *("time", "tt", "u", "var", "wbr"),
    }
)


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


def _decode(content: bytes, fallback: str | None = None) -> str:
    """Decode as UTF-8 or by the byte order mark; else by `fallback`, the encoding that the file declares."""
    encoding = next((name for bom, name in _BOMS.items() if content.startswith(bom)), "utf-8")
    if encoding != "utf-16" and b"\0" in content:
        raise Unusable("binary")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if fallback is None:
            raise Unusable(f"not {encoding.removesuffix('-sig').upper()} (byte {error.start})") from error
    try:
        return content.decode(fallback)
    except (UnicodeDecodeError, LookupError) as error:
        raise Unusable(f"neither UTF-8 nor {fallback}, which it declares") from error


def _html(file: Path) -> Parsed:
    """The title, and the text of the page's main content: main, a single article, or else the body."""
    content = file.read_bytes()
    charset = _CHARSET.search(content, 0, 1024)
    tree = _extra("selectolax.lexbor").LexborHTMLParser(_decode(content, charset[1].decode() if charset else None))
    title = tree.css_first("title") or tree.css_first("h1")
    heading = title.text(strip=True) if title else ""
    articles = tree.css("article")
    root = tree.css_first("main, [role=main]") or (articles[0] if len(articles) == 1 else None)
    for node in tree.css(_NOT_CONTENT if root else f"{_NOT_CONTENT}, header"):
        node.decompose()
    return Parsed(heading, "\n\n".join(_blocks(root or tree.body)))


def _blocks(root: Any) -> Iterator[str]:
    """The paragraphs, headings and items below a node, with white space collapsed as a browser does."""
    run: list[str] = []
    stack: list[Any] = [root]

    def flush() -> Iterator[str]:
        text = "\n".join(" ".join(line.split()) for line in "".join(run).split("\n")).strip()
        run.clear()
        if text:
            yield text

    while stack:  # not recursive: pages may nest deeper than Python's recursion limit
        node = stack.pop()
        if node is None:
            yield from flush()
        elif node.tag == "-text":
            run.append(re.sub(r"\s+", " ", node.text_content or ""))
        elif node.tag == "br":
            run.append("\n")
        elif node.tag == "pre":
            yield from flush()
            yield node.text().strip("\n")
        else:
            if node.tag in {"td", "th"}:
                run.append(" ")
            elif node.tag not in _INLINE:
                yield from flush()
                stack.append(None)
            stack.extend(reversed(list(node.iter(include_text=True))))
    yield from flush()


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
