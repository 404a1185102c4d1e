"""Terms of a text that can be compared: words, names, numbers with their units, symbols. scanner.py finds them."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from server.tasks.rag.vocabulary import ENDINGS

_DIGIT = re.compile(r"\d")
ANY_UNIT = "any"  # of a number in a table whose column does not tell the unit


class Number(NamedTuple):
    """A number as it may be read ("1,408" and "1.408" are ambiguous), its unit or "", and the words beside it or ""."""

    readings: frozenset[str]
    unit: str
    before: str
    counted: str = ""

    @property
    def has_unit(self) -> bool:
        """Whether a unit stands at the number, and not only in a table's header."""
        return self.unit not in ("", ANY_UNIT)

    def is_same(self, other: "Number") -> bool:
        """Whether a number that is written as `other` may be written as this one: with the same unit or without it."""
        same_unit = self.unit in ("", other.unit) or other.unit == ANY_UNIT
        return same_unit and bool(self.readings & other.readings)


@dataclass
class Terms:
    """The terms of a text. `names` are words that name one thing: with a digit, or with a capital inside a sentence."""

    words: set[str] = field(default_factory=set)
    characters: set[str] = field(default_factory=set)  # of CJK
    names: set[str] = field(default_factory=set)
    numbers: list[Number] = field(default_factory=list)
    symbols: set[str] = field(default_factory=set)

    @property
    def size(self) -> int:
        """The number of words and characters."""
        return len(self.words) + len(self.characters)

    def knows(self, word: str) -> bool:
        """Whether the text has this word, perhaps with another ending, or this character."""
        if word in self.words or word in self.characters:
            return True
        return len(word) >= 3 and any(alike(word, other) for other in self.words if other[0] == word[0])

    def has(self, number: Number) -> bool:
        """Whether the text has this number with the same unit."""
        return any(map(number.is_same, self.numbers))

    def share_in(self, other: "Terms") -> float:
        """The share of these words and characters that the other terms have; 1 if there are none."""
        found = sum(map(other.knows, self.words)) + len(self.characters & other.characters)
        return found / self.size if self.size else 1.0

    def without(self, other: "Terms") -> "Terms":
        """What these terms tell more than the others."""
        return Terms(
            {word for word in self.words if not other.knows(word)},
            self.characters - other.characters,
            {name for name in self.names if not other.knows(name)},
            [number for number in self.numbers if not other.has(number)],
            self.symbols - other.symbols,
        )

    def __or__(self, other: "Terms") -> "Terms":
        return Terms(
            self.words | other.words,
            self.characters | other.characters,
            self.names | other.names,
            self.numbers + other.numbers,
            self.symbols | other.symbols,
        )


def has_digit(name: str) -> bool:
    """Whether a name is a designation, such as "r2" or "k310"."""
    return bool(_DIGIT.search(name))


def alike(one: str, other: str) -> bool:
    """Whether two words differ in their endings alone: "weighs" and "weight", "install" and "installation"."""
    if one[:3] != other[:3]:
        return False
    pairs = enumerate(zip(one, other, strict=False))
    common = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    if common == 3:
        return {one[3:], other[3:]} <= {"", "s"}
    # The common part may contain the beginning of an ending: "supported" and "supporting", "copies" and "copied".
    return any(one[end:] in ENDINGS and other[end:] in ENDINGS for end in range(common, max(3, common - 3), -1))
