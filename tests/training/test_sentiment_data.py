"""The split of the sentiment data, its labels, and its batches."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.datasets.sentiment import SOURCES, duplicate_key, hard_labels, part_of, read_examples, soft_labels

RATINGS = st.lists(st.floats(-4, 4), min_size=1, max_size=20).map(np.array)


@given(st.sampled_from(list(SOURCES)), st.integers(0, 10**6), st.integers(0, 99), st.integers(0, 99))
def test_sentences_of_a_review_are_in_one_part(source: str, review: int, first: int, second: int) -> None:
    assert part_of(source, f"{review}_{first}") == part_of(source, f"{review}_{second}")


def test_the_parts_are_what_they_were_and_have_their_shares() -> None:
    parts = [part_of("movies", str(review)) for review in range(10_000)]
    pinned = [tweet for tweet in range(60) if part_of("tweets", str(tweet)) == "test"]
    assert pinned == [8, 10, 13, 16, 20, 28, 44, 45, 53, 57]
    assert parts.count("test") == pytest.approx(1000, abs=120)
    assert parts.count("validation") == pytest.approx(1000, abs=120)


@given(RATINGS)
def test_soft_labels_are_probabilities_that_lean_to_the_hard_ones(ratings: np.ndarray) -> None:
    soft = soft_labels(ratings, 0.35)
    assert np.allclose(soft.sum(axis=1), 1)
    assert (soft >= 0).all()
    clear = np.abs(np.abs(ratings) - 0.5) > 0.3  # from the threshold
    assert (soft.argmax(axis=1) == hard_labels(ratings))[clear].all()


def test_hard_labels_split_at_half_a_point() -> None:
    assert hard_labels(np.array([-4, -0.51, -0.5, 0, 0.5, 0.51, 4])).tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_duplicates_and_escapes_are_removed(tmp_path: Path) -> None:
    for name in SOURCES.values():
        (tmp_path / name).write_text("1_1\t2.5\tGood &amp;amp; cheap\n1_2\t2.4\tgood & cheap!!\n2_1\t-1\tBad\n")
    parts = read_examples({name: tmp_path / name for name in SOURCES.values()})
    texts = [example.text for part in parts.values() for example in part]
    assert sorted(texts) == ["Bad", "Good & cheap"]
    assert duplicate_key("Good & cheap") == duplicate_key("good  CHEAP?")
