"""The text of HTML pages: the main content, as a browser shows it, without what surrounds it."""

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_XML = re.compile(r"\s*<\?xml\s|<html\s[^>]*?xmlns\s*=", re.IGNORECASE)
_XML_WITHIN = 4096  # characters
_EMPTY_ELEMENT = re.compile(r"""<([A-Za-z][\w:-]*)((?:[^<>"']|"[^"]*"|'[^']*')*?)/>""")
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_VOID = frozenset(
    {
        *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track"),
        "wbr",
    }
)
_NEVER_CONTENT = "script, style, noscript, template, svg, iframe, select, datalist"
_AROUND_CONTENT = "nav, aside, footer, form, button, [hidden]:not([hidden=until-found])"
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6", "summary", "dt"})
# Elements that hold notes as well as links to other pages, or paragraphs as well as a search field.
_SOMETIMES_CONTENT = frozenset({"aside", "form"})
_NO_PROSE = frozenset({"a", "nav", "label", "button", "legend", "select", "textarea", "option"})
_BEGINNING = 500  # characters, in which prose shows
_PROSE = re.compile(r".{12,}[.!?:;…]|.{40,}|[^\x00-\u2fff]{6,}|[^\x00-\u2fff]{2,}[。！？]", re.DOTALL)
_INLINE = frozenset(
    {
        *("a", "abbr", "b", "bdi", "bdo", "button", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins"),
        *("kbd", "label", "mark", "q", "ruby", "rp", "rt", "s", "samp", "small", "span", "strike", "strong", "sub"),
        *("sup", "time", "tt", "u", "var", "wbr"),
    }
)
_VERBATIM = frozenset({"pre", "listing", "xmp", "plaintext"})
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))  # soft hyphens and the like, within words


class Page(NamedTuple):
    """The title, or an empty one, and the text."""

    title: str
    text: str


def extract(source: str, parser: Any, *, is_xml: bool = False) -> Page:
    """Title and text of a page; `parser` is selectolax's class. XHTML is read as XML is: `<title/>` is empty."""
    tree = parser(_from_xml(source) if is_xml or _XML.search(source, 0, _XML_WITHIN) else source)
    title = _title(tree)
    body = tree.body
    if body is None:
        return Page(title, "")
    for node in body.css(_NEVER_CONTENT):
        node.decompose()
    lengths = _text_lengths(body)
    root = _main(tree, body, lengths)
    for node in root.css(_AROUND_CONTENT if root is not body else f"{_AROUND_CONTENT}, header"):
        if node.parent is not None and not _is_content(node, root, lengths):
            node.decompose()
    return Page(title, "\n\n".join(_blocks(root)).translate(_INVISIBLE))


def _from_xml(source: str) -> str:
    """HTML that means the same: empty elements have an end tag, and CDATA is text."""
    source = _CDATA.sub(lambda found: html.escape(found[1], quote=False), source)

    def closed(found: re.Match[str]) -> str:
        name, attributes = found[1], found[2]
        return f"<{name}{attributes}>" if name.lower() in _VOID else f"<{name}{attributes}></{name}>"

    return _EMPTY_ELEMENT.sub(closed, source)


def _title(tree: Any) -> str:
    """The first title or h1 that has text; pictures have titles of their own."""
    for node in (*tree.css("title"), *tree.css("h1")):
        if not _is_within(node, {"svg"}) and (text := " ".join(" ".join(_blocks(node)).translate(_INVISIBLE).split())):
            return text
    return ""


def _main(tree: Any, body: Any, lengths: Mapping[int, int]) -> Any:
    """main, or the only article, unless most of the text stands elsewhere: an article may be a teaser."""

    def length(node: Any) -> int:
        return lengths.get(node.mem_id, 0)

    main = max(tree.css("main, [role=main]"), key=length, default=None)
    if main is not None and length(main) * 5 >= length(body):
        return main
    articles = [node for node in tree.css("article") if not _is_within(node.parent, {"article"})]
    if len(articles) == 1 and length(articles[0]) * 2 >= length(body):
        return articles[0]
    return body


def _is_content(node: Any, root: Any, lengths: Mapping[int, int]) -> bool:
    """Whether an element that usually surrounds content has content: a heading, most of the text, or prose."""
    if node.tag == "button":
        return _is_within(node.parent, _HEADINGS)
    if node.css_first("main, [role=main], article, h1"):
        return True
    if lengths.get(node.mem_id, 0) * 2 > lengths.get(root.mem_id, 0):
        return True
    return node.tag in _SOMETIMES_CONTENT and bool(_PROSE.search(_beginning(node)))


def _text_lengths(root: Any) -> dict[int, int]:
    """How long the text outside links, navigation and fields is, by node."""
    lengths: dict[int, int] = {}
    stack = [(root, False)]
    while stack:
        node, has_children_done = stack.pop()
        if has_children_done:
            lengths[node.mem_id] = sum(lengths.get(child.mem_id, 0) for child in node.iter(include_text=True))
        elif node.tag == "-text":
            lengths[node.mem_id] = len("".join((node.text_content or "").split()))
        elif node.tag not in _NO_PROSE:
            stack.append((node, True))
            stack += ((child, False) for child in node.iter(include_text=True))
    return lengths


def _beginning(node: Any) -> str:
    """The first of the text outside links, navigation and fields."""
    text, stack = "", [node]
    while stack and len(text) < _BEGINNING:
        each = stack.pop()
        if each.tag == "-text":
            text = f"{text}{each.text_content or ''}".lstrip()
        elif each.tag not in _NO_PROSE:
            stack.extend(reversed(list(each.iter(include_text=True))))
    return " ".join(text.split())


def _is_within(node: Any, tags: "frozenset[str] | set[str]") -> bool:
    while node is not None:
        if node.tag in tags:
            return True
        node = node.parent
    return False


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
        elif node.tag in _VERBATIM:
            yield from flush()
            if text := _verbatim(node).strip("\n"):
                yield text
        else:
            if node.tag in {"td", "th"}:
                run.append(" ")
            elif node.tag not in _INLINE:
                yield from flush()
                stack.append(None)
            stack.extend(reversed(list(node.iter(include_text=True))))
    yield from flush()


def _verbatim(root: Any) -> str:
    """The lines of a pre: its white space stays, and br and elements that are lines of their own end a line."""
    lines: list[str] = []
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if node is None:
            if lines and not lines[-1].endswith("\n"):
                lines.append("\n")
        elif node.tag == "-text":
            lines.append(node.text_content or "")
        elif node.tag == "br":
            lines.append("\n")
        else:
            if node is not root and node.tag not in _INLINE:
                stack.append(None)
                if lines and not lines[-1].endswith("\n"):
                    lines.append("\n")
            stack.extend(reversed(list(node.iter(include_text=True))))
    return "".join(lines)
