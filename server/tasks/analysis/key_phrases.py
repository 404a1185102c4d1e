"""Ranks the noun phrases of one text by C-value.

Frantzi, Ananiadou and Mima, "Automatic recognition of multi-word terms: the C-value/NC-value method" (International
Journal on Digital Libraries 3, 2000): the score grows with a phrase's length and frequency, less the average frequency
of the longer phrases that contain it. The factor of the length is 1 + log2(words), as Barrón-Cedeño, Sierra, Drouin and
Ananiadou proposed (CICLing 2009), so that single words count, too.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from server.domain.analysis import KeyPhrase, TextSpan

MAX_PHRASES = 20
MAX_WORDS = 8  # longer phrases are lists or quotations, and the parts of a phrase grow with the square of its words


class Candidate(NamedTuple):
    """An occurrence of a phrase: its words in their dictionary form, and where it stands."""

    words: tuple[str, ...]
    span: TextSpan


def rank(candidates: Sequence[Candidate]) -> tuple[KeyPhrase, ...]:
    """The best phrases, each with its first occurrence. `candidates` are in the order of the text."""
    occurrences: dict[tuple[str, ...], list[TextSpan]] = defaultdict(list)
    for words, span in candidates:
        if 0 < len(words) <= MAX_WORDS:
            occurrences[words].append(span)
    longer: dict[tuple[str, ...], list[tuple[str, ...]]] = {words: [] for words in occurrences}
    for words in occurrences:
        for part in _parts(words) & longer.keys():
            longer[part].append(words)
    # How often each phrase occurs, by itself or inside a longer one.
    counts = {words: len(occurrences[words]) + sum(len(occurrences[w]) for w in longer[words]) for words in occurrences}

    def c_value(words: tuple[str, ...]) -> float:
        around = longer[words]
        nested = sum(counts[w] for w in around) / len(around) if around else 0.0
        return (1 + math.log2(len(words))) * (counts[words] - nested)

    best = sorted(((c_value(words), words) for words in occurrences), key=lambda pair: -pair[0])[:MAX_PHRASES]
    return tuple(KeyPhrase(*occurrences[words][0], value / best[0][0], counts[words]) for value, words in best)


def _parts(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    """All shorter runs of words in a phrase."""
    count = len(words)
    return {words[begin : begin + size] for size in range(1, count) for begin in range(count - size + 1)}
