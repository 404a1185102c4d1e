"""Pages as people save them: content in unusual places, encodings of all ages, XHTML."""

from collections.abc import Callable
from pathlib import Path

import pytest
from quintet_client.cli.parsers import Parsed, Unusable, parse

RULE = "The zebra may carry over nine days."


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Parsed]:
    def read(content: str | bytes, name: str = "page.html") -> Parsed:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return parse(path)

    return read


Read = Callable[..., Parsed]


@pytest.mark.parametrize(
    "body",
    [
        f"<form><h1>Leave</h1><p>{RULE}</p><input></form>",
        f"<form><div>{RULE}</div></form>",
        f"<main><p>Intro.</p><form><fieldset><p>{RULE}</p><label>Yes<input></label></fieldset></form></main>",
        f"<main><p>Intro.</p><aside><p>{RULE}</p></aside></main>",
        f"<article><p>Intro.</p><aside class=note>{RULE} <a href=x>More</a></aside></article>",
        f"<aside><main><p>{RULE}</p></main></aside>",
        f"<div><p>{RULE}</p></div><article><p>Also read</p></article>",
        f"<main></main><div><p>{RULE}</p></div>",
        f"<main><p>Menu</p></main><div><p>{RULE} {RULE}</p></div>",
        f"<main>Old</main><main><p>{RULE}</p></main>",
        f"<article><article>A comment</article><p>{RULE}</p></article>",
        f"<header><h1>Leave</h1><p>{RULE}</p></header><p>Bye.</p>",
        f"<div hidden><p>{RULE}</p></div>",
        f"<main><p>{RULE * 3}</p><div hidden=until-found>{RULE}</div></main>",
        f"<main><h2><button>{RULE}</button></h2><p>Yes.</p></main>",
        f"<footer><p>{RULE}</p></footer>",
        "<main><p>The zebra may carry o&shy;ver nine days.</p></main>",
    ],
)
def test_content_is_found_where_pages_have_it(read: Read, body: str) -> None:
    assert RULE in read(f"<body>{body}</body>").text


@pytest.mark.parametrize(
    "around",
    [
        "<form><input name=q><button>Search</button></form>",
        "<form><label>Name <input></label><select><option>One</select><button>Go</button></form>",
        "<aside>Also read</aside>",
        "<aside><ul><li><a href=x>How zebras live in the steppe.</a></ul></aside>",
        "<nav><a href=x>Home</a></nav>",
        "<button>Copy</button>",
        "<div hidden>Draft</div>",
        "<footer>© 2024</footer>",
        "<svg><title>icon</title></svg>",
    ],
)
def test_what_surrounds_content_is_left_out(read: Read, around: str) -> None:
    assert read(f"<main><p>{RULE}</p>{around}</main>") == ("", RULE)


@pytest.mark.parametrize(
    ("pre", "text"),
    [
        ("<pre>pip install zebra<br>zebra run</pre>", "pip install zebra\nzebra run"),
        ("<pre>\na<br/>\n  b</pre>", "a\n\n  b"),
        ("<pre><code><div class=line>a</div><div class=line>  b</div></code></pre>", "a\n  b"),
        ("<pre><code><span>a</span>\n<span>  b</span></code></pre>", "a\n  b"),
        ("<pre><p>a</p>b</pre>", "a\nb"),
        ("<xmp>a\n  <b></xmp>", "a\n  <b>"),
        ("<listing>a\n  b</listing>", "a\n  b"),
    ],
)
def test_lines_of_code_stay(read: Read, pre: str, text: str) -> None:
    assert read(f"<p>Do:</p>{pre}").text == f"Do:\n\n{text}"


TEXTS = {
    "iso-8859-1": ("cp1252", "It costs 5 € — don’t pay."),
    "latin1": ("cp1252", "„Käse“ für 5 €"),
    "us-ascii": ("cp1252", "naïve – café"),
    "iso-8859-9": ("cp1254", "ığdır – “şöyle”"),
    "tis-620": ("cp874", "วันลา…"),
    "gb2312": ("gb18030", "朱镕基"),
    "gbk": ("gb18030", "㐂𠀀€"),
    "big5": ("big5hkscs", "香港嘅喺度"),
    "shift_jis": ("cp932", "①髙橋～"),
    "x-sjis": ("cp932", "有給休暇"),
    "euc-jp": ("euc_jp", "有給休暇は三十日"),
    "iso-2022-jp": ("iso2022_jp", "有給休暇は三十日"),
    "euc-kr": ("cp949", "똠방각하 휴가"),
    "ks_c_5601-1987": ("cp949", "휴가 30일"),
    "windows-1251": ("cp1251", "Отпуск"),
    "koi8-r": ("koi8-r", "Отпуск"),
    "macintosh": ("mac_roman", "café"),
}


@pytest.mark.parametrize("label", TEXTS)
@pytest.mark.parametrize(
    "declaration",
    [
        "<meta charset={}>",
        "<META http-equiv='Content-Type' content='text/html; charset={}'>",
        '<?xml version="1.0" encoding="{}"?>',
        "<script charset=utf-8></script>\n<meta name=x><meta charset='{}'>",
    ],
)
def test_declared_encodings_are_read_as_browsers_do(read: Read, label: str, declaration: str) -> None:
    encoding, text = TEXTS[label]
    page = declaration.format(label).encode() + f"<body><p>{text}</p></body>".encode(encoding)
    assert read(page).text == text


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>müde".encode("utf-16"), "müde"),
        ("<p>müde".encode("utf-16-le"), "müde"),
        ("\n<p>müde".encode("utf-16-be"), "müde"),
        ("<p>müde".encode("utf-32"), "müde"),
        ("<meta charset=utf-16><p>müde".encode(), "müde"),
        ("<meta charset=iso-8859-1><p>müde".encode(), "müde"),  # declared wrongly
        ("<meta charset=shift_jis><p>müde".encode("utf-8-sig"), "müde"),
        ("<meta charset=utf-8><p>müde, 5 €".encode("cp1252"), "müde, 5 €"),
        ("<p>Der Käse ist müde.".encode("cp1252"), "Der Käse ist müde."),  # declares nothing
        ("<html lang=ru><p>Отпуск длится".encode("cp1251"), "Отпуск длится"),
        ("<html lang='ja'><p>有給休暇".encode("cp932"), "有給休暇"),
        ("<html lang='ja'><p>有給休暇".encode("euc_jp"), "有給休暇"),
        ("<html lang=zh-TW><p>員工休假".encode("big5"), "員工休假"),
        ("<html lang=zh-CN><p>员工休假".encode("gb18030"), "员工休假"),
        (("<meta charset=utf-8><p>" + "日" * 200).encode() + b"\xff", "日" * 200 + "\ufffd"),  # one byte is broken
        (b"<meta charset=euc-kr><p>" + "휴가".encode("cp949") * 100 + b"\xff", "휴가" * 100 + "\ufffd"),
        (b"<meta charset=utf-7><p>a +AGE- b", "a +AGE- b"),
        *((f"<meta charset={name}><p>a \\n b".encode(), "a \\n b") for name in ("undefined", "unicode_escape", "idna")),
    ],
)
def test_other_encodings(read: Read, page: bytes, text: str) -> None:
    assert read(page).text == text


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("<p>Отпуск длится".encode("cp1251"), "not UTF-8 (byte 3)"),
        ("<meta charset=hex><p>müde".encode("cp1252"), "neither UTF-8 nor hex, which it declares"),
        (b"<meta charset=shift_jis><p>" + b"\x81 \x81 \x81", "neither UTF-8 nor shift_jis, which it declares"),
    ],
)
def test_what_cannot_be_decoded_is_skipped_and_not_garbled(read: Read, page: bytes, reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        read(page)
    assert str(caught.value) == reason


XHTML = '<html xmlns="http://www.w3.org/1999/xhtml">'


@pytest.mark.parametrize(
    "page",
    [
        f'<?xml version="1.0"?>{XHTML}<head><title/></head><body><p>{RULE}</p></body></html>',
        f"{XHTML}<head><title/><script src='a>b'/><style/></head><body><p>{RULE}</p></body></html>",
        f"{XHTML}<body><p>One.<br/>Two.</p><iframe src='x'/><textarea/><p>{RULE}</p></body></html>",
        f"{XHTML}<body><p><![CDATA[{RULE}]]></p></body></html>",
        f"{XHTML}<body><a id='x'/><p>{RULE}</p></body></html>",
    ],
)
def test_xhtml_is_read_as_xml(read: Read, page: str) -> None:
    assert RULE in read(page, "page.xhtml").text
    assert RULE in read(page, "page.html").text


@pytest.mark.parametrize(
    ("page", "title"),
    [
        ("<title> </title><h1>Leave</h1>", "Leave"),
        ("<title>Leave &amp;\n holidays</title>", "Leave & holidays"),
        ("<h1>Big <em>news</em><br>today</h1>", "Big news today"),
        ("<body><svg><title>icon</title></svg><h1>Leave</h1>", "Leave"),
        ("<p>No title", ""),
    ],
)
def test_titles(read: Read, page: str, title: str) -> None:
    assert read(f"{page}<p>Text").title == title
