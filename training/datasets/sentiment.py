"""The sentiment data of Hutto and Gilbert (2014).

24,000 sentences, each with the mean of twenty people's ratings from -4 to 4, and the words of their lexicon.
"""

import hashlib
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

LABELS = ("negative", "neutral", "positive")
THRESHOLD = 0.5  # the authors' own: a mean rating beyond it is not neutral
SOURCES = {
    "tweets": "tweets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "newspaper": "nytEditorialSnippets_GroundTruth.txt",
}

Floats = NDArray[np.float64]
_WORD = re.compile(r"[a-z][a-z' -]{2,}")


@dataclass(frozen=True)
class Example:
    """A sentence with its mean rating."""

    source: str
    rating: float
    text: str


def read_examples(files: Mapping[str, Path]) -> dict[str, list[Example]]:
    """The parts "train", "validation" and "test", without duplicates."""
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    for source, name in SOURCES.items():
        for line in files[name].read_text(encoding="utf-8-sig").splitlines():
            identity, rating, escaped = line.split("\t", 2)
            text = html.unescape(html.unescape(escaped.strip()))  # some are escaped twice
            if (key := duplicate_key(text)) not in seen:
                seen.add(key)
                parts[part_of(source, identity)].append(Example(source, float(rating), text))
    return parts


def read_words(files: Mapping[str, Path]) -> list[Example]:
    """The lexicon: 7,000 English words, each with the mean of ten people's ratings. Emoticons are left out."""
    lines = (line.split("\t") for line in files["vader_lexicon.txt"].read_text(encoding="utf-8").splitlines())
    return [Example("words", float(line[1]), line[0]) for line in lines if _WORD.fullmatch(line[0])]


def part_of(source: str, identity: str) -> str:
    """The part of a sentence: 80 : 10 : 10 by its review or article, so that no text is in two parts.

    `identity` is "REVIEW_SENTENCE", or "TWEET".
    """
    group = identity.split("_", 1)[0]
    digest = hashlib.sha256(f"sentiment-v1:{source}:{group}".encode()).digest()
    return {0: "test", 1: "validation"}.get(int.from_bytes(digest[:8], "big") % 10, "train")


def duplicate_key(text: str) -> str:
    """Equal for texts that differ in case, punctuation or spaces only."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def hard_labels(ratings: Floats) -> NDArray[np.int64]:
    """Indices into LABELS."""
    return (1 + (ratings > THRESHOLD).astype(np.int64) - (ratings < -THRESHOLD)).astype(np.int64)


def soft_labels(ratings: Floats, deviation: float) -> Floats:
    """Probabilities [n, 3] of the labels if true ratings are normal around the observed ones.

    A mean of twenty ratings is noisy, and a label near the threshold should count for little.
    """
    below = ndtr((-THRESHOLD - ratings) / deviation)
    above = ndtr((ratings - THRESHOLD) / deviation)
    return np.stack([below, ndtr((THRESHOLD - ratings) / deviation) - below, above], axis=1)
