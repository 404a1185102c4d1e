"""Splitting: whatever the text, nothing is lost, nothing is too long, and it is fast."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.rag import embedded_text
from server.tasks.rag.splitter import MAX_CODE_POINTS, MAX_WORDS, split

SENTENCE = st.sampled_from(
    [
        "It rained. ",
        "Dr. Who asked why? ",
        "猫は眠る。",
        "「はい。」",
        "no stop ",
        "\n\n",
        "x" * 200,
        "...",
        "! ",
        " \u3000",
        "\x1c",
        "e.g. this ",
    ]
)
TEXT = st.one_of(st.text(max_size=300), st.lists(SENTENCE, max_size=150).map("".join))


@given(TEXT)
def test_properties(text: str) -> None:
    passages = split(text)
    covered = set[int]()
    for start, end in passages:
        passage = text[start:end]
        assert passage == passage.strip() != ""
        assert end - start <= MAX_CODE_POINTS
        assert len(passage.split()) <= MAX_WORDS
        covered.update(range(start, end))
    assert {i for i, character in enumerate(text) if not character.isspace()} <= covered
    assert [start for start, _ in passages] == sorted({start for start, _ in passages})
    assert [end for _, end in passages] == sorted({end for _, end in passages})


def test_short_text_is_one_passage() -> None:
    text = "  Dr. Ada met e.g. Charles. They spoke!\n"
    assert [text[start:end] for start, end in split(text)] == [text.strip()]
    assert split(" \n\t ") == []


def test_borders_are_those_of_sentences_and_the_last_sentence_is_repeated() -> None:
    text = " ".join(f"Sentence number {i} says that the cat sat on the mat." for i in range(60))
    passages = [text[start:end] for start, end in split(text)]
    assert len(passages) > 3
    for passage, following in pairwise(passages):
        assert passage.startswith("Sentence number")
        assert passage.endswith("on the mat.")
        assert following.startswith(passage[passage.rindex("Sentence") :])


def test_chinese_is_split_at_its_full_stops() -> None:
    text = "今天天气很好，我们去公园散步。" * 40
    passages = [text[start:end] for start, end in split(text)]
    assert len(passages) > 2
    assert all(
        passage.startswith("今天") and passage.endswith("。") and len(passage) <= MAX_WORDS * 1.2
        for passage in passages
    )


def test_a_blank_line_ends_a_sentence() -> None:
    heading, body = "A heading without a stop " * 5, "word " * 170 + "end."
    text = f"{heading}\n\n{body}"
    assert [text[start:end] for start, end in split(text)] == [heading.strip(), body]


@pytest.mark.parametrize(
    "text",
    [
        "." * 20_000,
        "a" * 20_000,
        "a. " * 6_667,
        "。" * 20_000,
        "\n" * 20_000,
        "\n " * 10_000 + "x",
        '."' * 10_000,
        "猫" * 20_000,
    ],
)
def test_adversarial_text_is_fast(text: str) -> None:
    before = time.process_time()
    split(text)
    assert time.process_time() - before < 0.5


def test_title_is_embedded_with_the_passage() -> None:
    assert embedded_text("Cat", "It sleeps.") == "Cat\nIt sleeps."
    assert embedded_text("", "It sleeps.") == "It sleeps."
