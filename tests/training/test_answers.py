"""The questions about manuals, and the measures of what is called grounded."""

import re
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest

from server.domain.chat import ChatDone, ChatOptions, Message, TextDelta
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.tasks.rag.grounding import is_grounded
from training.datasets.manuals import DIGEST, HALVES, Question, digest, read_collections, read_questions
from training.recipes.answers import Judged, KeptAnswers, measure, to_table


def test_the_questions_are_of_both_halves_and_about_the_collections() -> None:
    questions, collections = read_questions(), read_collections()
    assert digest() == DIGEST
    assert len({(each.collection, each.question) for each in questions}) == len(questions) == 100
    assert Counter(each.half for each in questions) == dict.fromkeys(HALVES, 50)
    assert {each.collection for each in questions} == collections.keys()
    halves = {each.collection: each.half for each in questions}
    assert all(halves[each.collection] == each.half for each in questions), "no collection is in both"
    for each in questions:
        assert each.right is None or not re.search(each.right, each.wrong, re.IGNORECASE)
    assert all(document.title for documents in collections.values() for document in documents)


@pytest.mark.parametrize("half", HALVES)
def test_no_wrong_answer_is_accepted_with_all_documents_at_hand(half: str) -> None:
    """Without a model and without retrieval, as a guard between the runs of `make eval`."""
    from server.domain.rag import Passage

    collections = read_collections()
    accepted = [
        each.wrong
        for each in read_questions()
        if each.half == half
        and is_grounded(
            each.wrong,
            each.question,
            [Passage(d.id, d.title, d.text, 1.0, "", {}, 0, len(d.text)) for d in collections[each.collection]],
        )
    ]
    assert accepted == []


def judged(*, is_right: bool = False, grounded: bool = False, abstained: bool = False, wrong: bool = False) -> Judged:
    return Judged(Question("held-out", "a", "b?", "c", "d"), "c", is_right, grounded, abstained, wrong)


def test_precision_and_recall() -> None:
    measured = measure(
        [
            *[judged(is_right=True, grounded=True)] * 3,
            judged(is_right=True),
            judged(grounded=True, wrong=True),
            *[judged(abstained=True)] * 3,
        ]
    )
    assert measured == {
        "answers": 8,
        "right": 4,
        "precision": 0.75,
        "recall": 0.75,
        "abstained": 0.375,
        "wrong answers accepted": 0.125,
    }
    assert to_table({"held-out": measured}).splitlines()[-1] == "| held-out | 8 | 4 | 0.750 | 0.750 | 0.375 | 0.125 |"
    assert measure([judged()])["precision"] == 1.0


class Counting:
    """An upstream that numbers its answers."""

    description = ModelDescription(ModelIdentity("counting", "1", ""), ModelTask.CHAT, "test")
    prompt_tokens = estimate = None

    def __init__(self) -> None:
        self.asked = 0

    async def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[TextDelta | ChatDone, None]:
        self.asked += 1
        yield TextDelta(f"answer {self.asked}")


async def test_answers_are_kept_for_the_next_build(tmp_path: Path) -> None:
    async def ask(text: str) -> str:
        chat = KeptAnswers(upstream, tmp_path)  # type: ignore[arg-type]  # all that it uses
        events = chat.stream([Message("user", text)], ChatOptions(), deadline=0.0)
        return "".join([event.text async for event in events if isinstance(event, TextDelta)])

    upstream = Counting()
    assert [await ask(text) for text in ("one", "two", "one")] == ["answer 1", "answer 2", "answer 1"]
    assert upstream.asked == 2
