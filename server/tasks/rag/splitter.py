"""Splits documents into overlapping passages that an embedder reads whole.

Three steps, each linear in the length of the text: pieces (runs without white space, ended by a CJK full stop),
sentences (pieces up to a full stop or a blank line), passages (sentences up to the limits). No language is known
here: an abbreviation may end a sentence too early, which is harmless, because sentences are joined again.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

# Encyclopaedia articles in passages of these limits have 170 of the embedder's tokens on average and 253 at most; it
# reads 256. Text of another kind, such as code, has more: then the end of a passage is not in its vector.
# docs/notes/passage-splitter.md compares this with a token-exact splitter.
MAX_WORDS = 180
MAX_CODE_POINTS = 900
# The last sentence of a passage begins the next one, so that an answer across the border is found; a long one does not.
_OVERLAP_WORDS = MAX_WORDS // 4
_OVERLAP_CODE_POINTS = MAX_CODE_POINTS // 4

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\uff66-\uff9f\U00020000-\U0003ffff"
_CJK_STOPS = "。！？｡．"
# Possessive quantifiers never backtrack, so no text makes this slow.
_PIECE = re.compile(rf"[^\s{_CJK_STOPS}]*+[{_CJK_STOPS}]++[\"'”’」』）】)\]]*+|[^\s{_CJK_STOPS}]++")
_SENTENCE_END = re.compile(rf"[.!?…{_CJK_STOPS}][\"'”’»」』）】)\]]{{0,4}}\Z")
_CJK_CHARACTER = re.compile(f"[{_CJK}]")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")


class _Piece(NamedTuple):
    """Code points `start` to `end`, with the number of words; a CJK character counts as a word."""

    start: int
    end: int
    words: int

    def fits(self, following: "_Piece") -> bool:
        return self.words + following.words <= MAX_WORDS and following.end - self.start <= MAX_CODE_POINTS

    def joined(self, following: "_Piece") -> "_Piece":
        return _Piece(self.start, following.end, self.words + following.words)


def split(text: str) -> list[tuple[int, int]]:
    """(start, end) of the passages in code points, in order.

    Every character that is not white space is in one, and no passage begins or ends with white space. A passage has
    at most MAX_WORDS words and MAX_CODE_POINTS code points. A text of white space alone has none.
    """
    passages: list[tuple[int, int]] = []
    passage = last = None
    for sentence in _sentences(text):
        if passage and not passage.fits(sentence):
            passages.append((passage.start, passage.end))
            short = last and last.words <= _OVERLAP_WORDS and last.end - last.start <= _OVERLAP_CODE_POINTS
            passage = last if last and short and last.fits(sentence) else None
        passage = passage.joined(sentence) if passage else sentence
        last = sentence
    if passage:
        passages.append((passage.start, passage.end))
    return passages


def _sentences(text: str) -> Iterator[_Piece]:
    """Sentences; one over the limits comes in several parts."""
    sentence: _Piece | None = None
    for piece in _pieces(text):
        if sentence and (_ends_sentence(text, sentence, piece) or not sentence.fits(piece)):
            yield sentence
            sentence = None
        sentence = sentence.joined(piece) if sentence else piece
    if sentence:
        yield sentence


def _ends_sentence(text: str, sentence: _Piece, following: _Piece) -> bool:
    if _BLANK_LINE.search(text, sentence.end, following.start):
        return True
    tail = max(sentence.start, sentence.end - 5)
    return bool(_SENTENCE_END.search(text, tail, sentence.end)) and not text[following.start].islower()


def _pieces(text: str) -> Iterator[_Piece]:
    """Runs without white space, cut where they could be over the limits."""
    for match in _PIECE.finditer(text):
        for start in range(match.start(), match.end(), MAX_WORDS):
            end = min(match.end(), start + MAX_WORDS)
            yield _Piece(start, end, len(_CJK_CHARACTER.findall(text, start, end)) or 1)
