"""C-value on phrases that are given."""

from hypothesis import given
from hypothesis import strategies as st

from server.domain.analysis import KeyPhrase, TextSpan
from server.tasks.analysis.key_phrases import MAX_PHRASES, MAX_WORDS, Candidate, rank


def candidates(*phrases: str) -> list[Candidate]:
    """The phrases in this order, one after the other in a text."""
    found, start = [], 0
    for phrase in phrases:
        found.append(Candidate(tuple(phrase.lower().split()), TextSpan(phrase, start, start + len(phrase))))
        start += len(phrase) + 1
    return found


def texts(phrases: tuple[KeyPhrase, ...]) -> list[str]:
    return [phrase.text for phrase in phrases]


def test_frequent_and_long_phrases_come_first() -> None:
    ranked = rank(candidates("moon", "solar panel", "sun", "solar panel", "moon"))
    assert texts(ranked) == ["solar panel", "moon", "sun"]
    assert [phrase.count for phrase in ranked] == [2, 2, 1]
    # (1 + log2 2) * 2 = 4, (1 + log2 1) * 2 = 2, (1 + log2 1) * 1 = 1
    assert [phrase.score for phrase in ranked] == [1.0, 0.5, 0.25]


def test_a_part_of_one_longer_phrase_counts_less_than_one_of_many() -> None:
    # "panel" occurs three times in both texts: only in one phrase, or in three different ones.
    same = rank(candidates("solar panel", "solar panel", "panel"))
    different = rank(candidates("solar panel", "glass panel", "panel"))
    assert (texts(same)[-1], same[-1].count) == ("panel", 3)
    by_text = {phrase.text: phrase for phrase in different}
    # (3 - 2) to 2 * 2, and (3 - (1 + 1) / 2) to 2 * 1
    assert same[-1].score == 0.25
    assert by_text["panel"].score == 1.0


def test_the_first_occurrence_is_shown() -> None:
    (phrase,) = rank(candidates("Solar Panel", "solar panel"))
    assert phrase == KeyPhrase("Solar Panel", 0, 11, 1.0, 2)


def test_nothing_and_overlong_phrases_give_nothing() -> None:
    assert rank([]) == ()
    assert rank(candidates(" ".join("abcdefghijklm"[: MAX_WORDS + 1]), "")) == ()


words = st.lists(st.sampled_from("abcd"), min_size=0, max_size=MAX_WORDS + 2)


@given(phrases=st.lists(words.map(" ".join), max_size=60))
def test_scores_are_relative_to_the_first_and_fall(phrases: list[str]) -> None:
    ranked = rank(candidates(*phrases))
    scores = [phrase.score for phrase in ranked]
    assert len(ranked) <= MAX_PHRASES
    assert scores == sorted(scores, reverse=True)
    assert scores[:1] in ([], [1.0])
    assert all(0 < score <= 1 for score in scores)
    for phrase in ranked:
        wanted = phrase.text.split()
        lists = [p.split() for p in phrases if len(p.split()) <= MAX_WORDS]
        inside = [p for p in lists if any(p[i : i + len(wanted)] == wanted for i in range(len(p)))]
        assert phrase.count == len(inside), "a phrase counts once for each phrase that holds it"
