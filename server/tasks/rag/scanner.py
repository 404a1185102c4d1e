"""Finds the terms of a text, in any language that spaces or vocabulary.py help with."""

import re

from server.tasks.rag.terms import Number, Terms, has_digit
from server.tasks.rag.vocabulary import (
    CJK,
    ENGLISH,
    FUNCTION_CHARACTERS,
    FUNCTION_WORDS,
    NUMBER_WORDS,
    QUALITIES,
    SCALES,
    UNIT,
)

_NUMBER = r"\d{1,3}(?:[\u00a0\u202f ]\d{3})+(?![\d.,]*\d)|\d+(?:[.,:]\d+)*"
_TOKEN = re.compile(
    rf"(?P<number>(?<![^\W{CJK}])(?:{_NUMBER}))|(?P<cjk>[{CJK}])|(?P<word>[A-Z]{{1,4}}-\d+\b|(?:(?![{CJK}])[^\W_])+)"
    r"|(?P<symbol>(?<=[`'\"“‘「\s])[~^%!#$&*+=<>@?:;/\\\-]{1,3}(?=[`'\"”’」\s,]|\.(?:\s|\Z)))"
)
# Identifiers, options, paths and addresses: idle_timeout, AWS_REGION, --jobs, ~/.ferry/config, ferry.toml.
_CODE_TOKEN = re.compile(r"[^\s`'\"()\[\]{},;!?*|<>=\u0080-\U0010ffff]+")
_MAX_CODE = 200  # code points: a longer run is no identifier
_CODE = re.compile(
    r"--?[A-Za-z][\w-]*|\w*[^\W_]_\w+|(?:~|\.{1,2})?/[\w./:~-]+|[a-z][a-z0-9+.-]*://.+|\w+(?:::\w+)+|(?:[\w-]+/){2,}[\w.-]*"
    r"|(?:[\w-]+/)+[\w-]+\.\w+|[\w-]+(?:\.[A-Za-z_]\w+)+"
)
_NAMESPACE = re.compile(r"\.(?=[^\W\d])")  # "default" of default.s3.queue_size is not the word
_UNIT_AFTER = re.compile(
    rf"""[\s\u00a0\u202f-]?(?:(?P<area>square|cubic|Quadrat)\s?)?
    (?P<unit>light[ -]years?|°\s?[CFK]?|℃|%|[$€£¥]|[A-Za-zµéèíñ]+(?:[²³]|2(?!\d))?(?:/[A-Za-z]+)?|[{CJK}]{{1,5}})""",
    re.VERBOSE,
)
_CURRENCY_BEFORE = re.compile(r"(?:[$€£¥]|USD|EUR|GBP|CHF|NT\$)\s?\Z")
_COUNTED = re.compile(rf"\s((?:(?![{CJK}])[^\W\d_]){{3,}})")  # "60 devices"
_SENTENCE_START = re.compile(r"(?:\A|[.!?:;。！？：\n|]\s*)[\s\"'“‘(`*_¿¡«-]*\Z")
_FIRST = re.compile(r"first (?:in|by|place|rank)\b", re.IGNORECASE)  # and not "who climbed it first"
_NOT_ORDINAL = re.compile(r"(?:\b(?:one|a|per|each|every|the next)|\d)\s*\Z", re.IGNORECASE)


def pairs_of(text: str) -> list[tuple[str, str]]:
    """Words, or characters of CJK, that carry content and stand side by side: "red light", "红灯"."""
    found = []
    before, end = "", 0
    for match in _TOKEN.finditer(text):
        word = match.group().casefold()
        if match.lastgroup not in ("word", "cjk") or word in FUNCTION_WORDS or word in FUNCTION_CHARACTERS:
            continue
        if before and text[end : match.start()] in ((" ", "-") if match.lastgroup == "word" else ("",)):
            found.append((before, word))
        before, end = word, match.end()
    return found


def terms_of(text: str, *, capitals_name: bool = True) -> Terms:
    """The terms of a text. In languages that capitalise every noun, capitals name nothing."""
    code = (token.rstrip(".:") for token in _CODE_TOKEN.findall(text))
    found = Terms(symbols={token.casefold() for token in code if len(token) <= _MAX_CODE and _CODE.fullmatch(token)})
    for symbol in (symbol for symbol in found.symbols if "/" in symbol):  # the parts of a path are no words
        text = re.sub(re.escape(symbol), lambda match: " " * len(match.group()), text, flags=re.IGNORECASE)
    before, skip = "", 0
    for match in _TOKEN.finditer(text):
        if match.start() < skip:
            continue
        kind, token = str(match.lastgroup), match.group()
        if kind == "number":
            unit, skip = _unit(text, match)
            counted = _COUNTED.match(text, match.end())
            found.numbers.append(Number(_readings(token), unit, before, counted[1].casefold() if counted else ""))
        elif kind == "cjk":
            if token not in FUNCTION_CHARACTERS:
                found.characters.add(token)
        elif kind == "symbol":
            found.symbols.add(token)
        else:
            _add_word(found, token, text, match.start(), capitals_name=capitals_name)
        before = token.casefold() if kind in ("word", "cjk") else ""
    return found


def _add_word(found: Terms, token: str, text: str, start: int, *, capitals_name: bool) -> None:
    word = token.replace("-", "").casefold()  # "GPT-2" is "gpt2"
    if _NAMESPACE.match(text, start + len(token)):
        return
    if word in NUMBER_WORDS:
        found.numbers.append(Number(frozenset((NUMBER_WORDS[word],)), "", ""))
        return
    if word == "second" and not _NOT_ORDINAL.search(text, max(0, start - 12), start):
        found.numbers.append(Number(frozenset("2"), "", ""))
    if _FIRST.match(text, start):
        found.numbers.append(Number(frozenset("1"), "", ""))
    is_capital = token[0].isupper() and not _SENTENCE_START.search(text, max(0, start - 8), start)
    is_name = has_digit(token) or (capitals_name and len(token) > 1 and (is_capital or token.isupper()))
    is_letter = len(token) == 1 and token.isupper() and word not in "ai"  # "flag W"
    if word in (ENGLISH if is_name else FUNCTION_WORDS) or (len(word) == 1 and not is_letter):
        return
    found.words.add(word if is_name else QUALITIES.get(word, word))
    if is_name:
        found.names.add(word)


def _readings(token: str) -> frozenset[str]:
    """The values that a number can have: a comma or a point may group digits or begin the decimals."""
    if groups := re.split(r"[\u00a0\u202f ]", token)[1:]:
        return frozenset((re.sub(r"\D", "", token), "".join(groups)))  # "5 200", or "Kestrel 5 200 g"
    if not re.search(r"[.,]", token) or len(re.findall(r"[.:]", token)) > 1:
        return frozenset((token.lstrip("0") or "0",))
    grouped = re.sub(r"[.,]", "", token) if re.fullmatch(r"\d{1,3}([.,]\d{3})+", token) else None
    decimal = token.replace(",", ".").rstrip("0").rstrip(".") if len(re.findall(r"[.,]", token)) == 1 else None
    mixed = re.fullmatch(r"(\d{1,3}(?:([.,])\d{3})+)(?!\2)[.,](\d+)", token)
    if mixed:
        return frozenset((re.sub(r"[.,]", "", mixed[1]) + "." + mixed[3],))
    return frozenset(value for value in (grouped, decimal) if value) or frozenset((token,))


def _unit(text: str, number: re.Match[str]) -> tuple[str, int]:
    """The unit that stands at a number, and where it ends."""
    after = number.end()
    if scale := SCALES.match(text, after):
        after = scale.end()
    if match := _UNIT_AFTER.match(text, after):
        written = match["unit"].replace("light ", "light-").replace(" ", "")
        for length in range(len(written), 0, -1) if not written[0].isascii() else (len(written),):
            unit = unit_of(written[:length])
            if unit:
                exponent = {"square": "²", "Quadrat": "²", "cubic": "³"}.get(match["area"] or "", "")
                return unit + exponent, match.start("unit") + length + (len(match["unit"]) - len(written))
    if match := _CURRENCY_BEFORE.search(text, max(0, number.start() - 4), number.start()):
        return unit_of(match.group().strip()), number.end()
    return "", number.end()


def unit_of(written: str) -> str:
    """The unit of a spelling, or ""."""
    # The case of short symbols matters: m and M, g and G.
    return UNIT.get(written) or (UNIT.get(written.casefold(), "") if len(written) > 3 else "")
