"""The FAQ set and its measures."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from server.tasks.rag import splitter as passages
from training.datasets.faq import Docs, Section, plain, read_sections, split_page
from training.recipes.retrieval import Index, _split_limits, answers_of, measure, to_table

FAQ = """
==========
FAQ: Keys
==========

.. contents::
   :local:

Where is the key?
=================

The key is **under** the :doc:`mat </mat>`, as ``locate()`` says::

    locate("key")

.. _lost:

In the dark
-----------

Take a :class:`~lamps.hand.Lamp` with you, and `read this <https://example.org>`_ first.

I can't open the door
=====================

.. versionadded:: 2.1

    Turn the key twice.
"""


def test_a_page_becomes_sections_whose_questions_are_withheld() -> None:
    sections = list(split_page("docs/faq", FAQ, is_faq=True))
    assert [(each.title, each.question) for each in sections] == [
        ("FAQ: Keys", "Where is the key?"),
        ("FAQ: Keys: In the dark", "Where is the key?"),
        ("FAQ: Keys", "I can't open the door"),
    ]
    assert sections[0].text == 'The key is under the mat, as locate() says:\n\nlocate("key")'
    assert sections[1].text == "Take a Lamp with you, and read this first."
    assert sections[2].text == "2.1\n\nTurn the key twice."
    assert answers_of(sections) == {
        ("docs/faq", "Where is the key?"): [0, 1],
        ("docs/faq", "I can't open the door"): [2],
    }


def test_other_pages_ask_nothing() -> None:
    sections = list(split_page("docs/keys", FAQ, is_faq=False))
    assert {each.question for each in sections} == {""}
    assert sections[0].title == "FAQ: Keys: Where is the key?"


def test_comments_and_lists_of_contents_say_nothing() -> None:
    source = [
        ".. comment",
        "   that goes on",
        "",
        ".. toctree::",
        "   :maxdepth: 2",
        "",
        "   a",
        "",
        "Text.",
        "",
        ".. x",
    ]
    assert plain(source) == "Text."


def test_sections_are_read_from_a_source_distribution(tmp_path: Path) -> None:
    archive = tmp_path / "p-1.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("p-1/docs/faq/keys.txt", "p-1/docs/ref/keys.txt", "p-1/docs/faq/keys.py", "p-1/faq.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(FAQ)
            tar.addfile(member, io.BytesIO(FAQ.encode()))
    found = list(read_sections(archive, Docs("p", "p-1/docs", ("faq",), "faq/")))
    assert {each.id.partition("#")[0] for each in found} == {"p/faq/keys.txt"}
    assert all(isinstance(each, Section) and each.question for each in found)


def test_sections_are_ranked_by_their_best_passages() -> None:
    owners = np.array([0, 0, 1, 2, 3])
    index = Index([("", "")] * 5, owners, np.zeros((2, 5), np.float32))
    scores = np.array([[0.1, 0.9, 0.5, 0.4, 0.3], [0.9, 0.1, 0.2, 0.3, 0.4]], np.float32)
    found = measure(index, [np.array([0]), np.array([2])], scores)
    assert (found["hit@1"], found["hit@3"]) == (0.5, 1.0)
    assert found["mrr@10"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / np.log2(4)) / 2)
    # Of passages, the first question has two right ones, at ranks 1 and 5.
    ideal = 1 + 1 / np.log2(3)
    assert found["ndcg@10 of passages"] == pytest.approx(((1 + 1 / np.log2(6)) / ideal + 1 / np.log2(4)) / 2)
    assert to_table({"x": found}).splitlines()[2].startswith("| x | 5 | 0.750 | 0.667 | 0.500 |")


def test_other_split_limits_hold_for_once() -> None:
    text = "One two three four. " * 90
    served = passages.split(text)
    with _split_limits(45):
        assert len(passages.split(text)) > 2 * len(served)
    assert passages.split(text) == served
