"""Decodes pages as browsers do: https://encoding.spec.whatwg.org names the encoding that each label stands for."""

import codecs
import re

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DECLARED = re.compile(
    rb"""<\?xml[^>]*?\sencoding\s*=\s*["']\s*([\w.:-]+)|<meta\s[^>]*?charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE
)
_DECLARED_WITHIN = 4096  # bytes
_LANGUAGE = re.compile(rb"""<html\s[^>]*?lang\s*=\s*["']?\s*([\w-]+)""", re.IGNORECASE)
# Python's names of what labels stand for, where browsers read a superset of the label's encoding.
_SUPERSETS = {
    **dict.fromkeys(("ascii", "iso8859-1", "latin_1", "x-user-defined"), "cp1252"),
    "iso8859-9": "cp1254",
    **dict.fromkeys(("iso8859-11", "tis-620"), "cp874"),
    **dict.fromkeys(("gb2312", "gbk"), "gb18030"),
    **dict.fromkeys(("big5", "x-x-big5"), "big5hkscs"),
    **dict.fromkeys(("shift_jis", "sjis"), "cp932"),
    "euc_kr": "cp949",
    "iso-8859-8-i": "iso8859-8",
    **dict.fromkeys(("utf-16", "utf-16-le", "utf-16-be", "utf-32"), "utf-8"),  # the label itself could be read
}
_NO_ENCODINGS = frozenset({"utf_7", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"})
# The encodings of pages that declare none, by language, as browsers guess them.
_OF_LANGUAGE = {
    **dict.fromkeys(("be", "bg", "mk", "ru", "sr", "uk"), ("cp1251",)),
    **dict.fromkeys(("cs", "hr", "hu", "pl", "ro", "sk", "sl"), ("cp1250",)),
    **dict.fromkeys(("et", "lt", "lv"), ("cp1257",)),
    "el": ("cp1253",),
    "tr": ("cp1254",),
    "he": ("cp1255",),
    "ar": ("cp1256",),
    "th": ("cp874",),
    "vi": ("cp1258",),
    "ja": ("euc_jp", "cp932"),
    "ko": ("cp949",),
    "zh": ("gb18030",),
    "zh-tw": ("big5hkscs",),
    "zh-hk": ("big5hkscs",),
    "zh-hant": ("big5hkscs",),
}
_ESCAPES = (b"\x1b$", b"\x1b(", b"~{")  # of encodings whose bytes are all ASCII
_LONG_RUN = re.compile(rb"[\x80-\xff]{4}")  # hardly in Western languages
_MOST_BROKEN = 0.01  # of the characters outside ASCII


class Undecodable(Exception):
    """No encoding fits; the message is the reason."""


def decode_text(content: bytes) -> str:
    """Decode as UTF-8 or by the byte order mark. Raises Undecodable."""
    encoding = _by_mark(content) or "utf-8"
    if encoding[:6] not in {"utf-16", "utf-32"} and b"\0" in content:
        raise Undecodable("binary")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise Undecodable(f"not {encoding.removesuffix('-sig').upper()} (byte {error.start})") from error


def decode_page(content: bytes) -> str:
    """Decode by the byte order mark, as UTF-8, by the declared encoding, or by the language. Raises Undecodable.

    UTF-8 comes before the declaration: what is valid UTF-8 outside ASCII is hardly ever anything else.
    """
    if not _by_mark(content):
        if wide := _wide(content):
            return content.decode(wide, "replace")
        if b"\0" in content:
            raise Undecodable("binary")
        found = _DECLARED.search(content, 0, _DECLARED_WITHIN)
        label = (found[1] or found[2]).decode() if found else ""
        declared = _codec(label)
        if declared and declared.startswith(("iso2022", "hz")) and any(each in content for each in _ESCAPES):
            return content.decode(declared, "replace")
        for encoding in ("utf-8", declared, *_guesses(content, label, declared)):
            if encoding and (text := _almost(content, encoding)) is not None:
                return text
        if label and declared != "utf-8":
            raise Undecodable(f"neither UTF-8 nor {label}, which it declares")
    return decode_text(content)


def _by_mark(content: bytes) -> str:
    return next((name for mark, name in _BOMS.items() if content.startswith(mark)), "")


def _wide(content: bytes) -> str:
    """UTF-16 without a mark, told by its first "<"."""
    if re.match(rb"(?:\s\0)*<\0", content):
        return "utf-16-le"
    return "utf-16-be" if re.match(rb"(?:\0\s)*\0<", content) else ""


def _codec(label: str) -> str:
    """Python's name of the encoding that a label stands for; "" if there is none."""
    label = label.lower()
    for name in (label, label.removeprefix("x-"), label.replace("windows-", "cp")):
        if name in _SUPERSETS:
            return _SUPERSETS[name]
        try:
            found = codecs.lookup(name).name
            if found.replace("-", "_") in _NO_ENCODINGS:
                continue
            b"a".decode(found, "replace")  # raises LookupError for codecs such as hex
        except LookupError:
            continue
        return _SUPERSETS.get(found, found)
    return ""


def _guesses(content: bytes, label: str, declared: str) -> tuple[str, ...]:
    """Encodings to try if the page declares none, or UTF-8 wrongly."""
    if label and declared != "utf-8":
        return ()
    found = _LANGUAGE.search(content, 0, _DECLARED_WITHIN)
    language = found[1].decode().lower() if found else ""
    of_language = _OF_LANGUAGE.get(language) or _OF_LANGUAGE.get(language.partition("-")[0])
    if of_language:
        return of_language
    return () if _LONG_RUN.search(content) else ("cp1252",)


def _almost(content: bytes, encoding: str) -> str | None:
    """The text if it can be decoded but for a few characters, as in a page that was cut or put together."""
    if encoding == "cp1252":  # it leaves five bytes undefined, which browsers read as control characters
        return content.decode(encoding, "replace").replace("\ufffd", "")
    text = content.decode(encoding, "replace")
    broken = text.count("\ufffd") - content.count("\ufffd".encode() if encoding == "utf-8" else b"\x84\x31\xa4\x37")
    outside = sum(not character.isascii() for character in text) if broken > 0 else 1
    return text if broken <= _MOST_BROKEN * outside else None
