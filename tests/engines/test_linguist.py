"""spaCy's English pipeline: offsets, sentences, syntax, and a vocabulary that does not grow."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engines.interfaces import Linguistics, ModelTask, Span
from server.engines.linguist import SpacyLinguist
from server.errors import DeadlineExceeded
from server.runtime.artefact import open_artefact
from server.runtime.lanes import Lanes
from tests.engines.conftest import soon

TEXT = (
    "Tim Cook opened the new Apple Store in London on Monday.\n\n   It wasn't cheap: the British glass panels\tcost "
    "$5 million. Many visitors admired the glass panels, and they took photos of them! "
)


@pytest.fixture(scope="module")
async def linguist(models: Path) -> AsyncIterator[SpacyLinguist]:
    lane = Lanes(1, queue_limit=64)
    yield SpacyLinguist(open_artefact(models, "en_core_web_sm"), lane)
    lane.close()


@pytest.fixture(scope="module")
async def parsed(linguist: SpacyLinguist) -> Linguistics:
    return await linguist.parse(TEXT, deadline=soon())


def spans(parsed: Linguistics) -> list[Span]:
    return [
        *(entity.span for entity in parsed.entities),
        *(phrase.span for phrase in parsed.key_phrases),
        *parsed.sentences,
        *(token.span for token in parsed.tokens),
    ]


async def test_entities_have_types(parsed: Linguistics) -> None:
    found = {(entity.span.text, entity.type) for entity in parsed.entities}
    expected = {("Tim Cook", "PERSON"), ("London", "GPE"), ("Monday", "DATE"), ("$5 million", "MONEY")}
    assert expected <= found


async def test_sentences_cover_the_text_without_the_space_between(parsed: Linguistics) -> None:
    assert len(parsed.sentences) == 3
    assert "".join("".join(s.text for s in parsed.sentences).split()) == "".join(TEXT.split())


async def test_key_phrases_lead_with_what_recurs_and_drop_articles_and_pronouns(parsed: Linguistics) -> None:
    texts = [phrase.span.text for phrase in parsed.key_phrases]
    counts = {phrase.span.text: phrase.count for phrase in parsed.key_phrases}
    assert counts["glass panels"] == 2
    assert "visitors" in texts, "the determiner of 'Many visitors' stayed"
    assert not {"It", "they", "them"} & set(texts)
    assert not any(text.split()[0].lower() in {"the", "many", "a"} for text in texts)


async def test_tokens_form_trees_without_white_space(parsed: Linguistics) -> None:
    tokens = parsed.tokens
    assert [token.span.text for token in tokens[:4]] == ["Tim", "Cook", "opened", "the"]
    assert "".join(token.span.text for token in tokens) == "".join(TEXT.split())
    opened = tokens[2]
    assert (opened.lemma, opened.pos, opened.tag, opened.dependency, opened.head) == ("open", "VERB", "VBD", "ROOT", 2)
    assert tokens[tokens[0].head].span.text == "Cook"
    roots = [index for index, token in enumerate(tokens) if token.head == index]
    assert len(roots) == len(parsed.sentences)


pieces = st.sampled_from(
    [
        "Ann",
        "saw",
        "the",
        "big",
        "dogs",
        "in",
        "New",
        "York",
        ".",
        "!",
        "\n\n",
        "   ",
        "\t",
        "\u00a0",
        "naïve",
        "😀",
        "日本",
        "e\u0301",
    ]
)


@given(text=st.lists(pieces, min_size=1, max_size=40).map(" ".join) | st.text(min_size=1, max_size=80))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
async def test_offsets_are_code_points_of_the_text(linguist: SpacyLinguist, text: str) -> None:
    parsed = await linguist.parse(text, deadline=soon())
    for span in spans(parsed):
        assert text[span.start : span.end] == span.text
        assert span.text == span.text.strip()
    assert all(token.span.text for token in parsed.tokens)
    assert all(0 <= token.head < len(parsed.tokens) for token in parsed.tokens)
    assert [t.span.start for t in parsed.tokens] == sorted(t.span.start for t in parsed.tokens)
    for index in range(len(parsed.tokens)):
        climbed = index
        for _ in parsed.tokens:
            climbed = parsed.tokens[climbed].head
        assert parsed.tokens[climbed].head == climbed, "the heads run in a circle"


@pytest.mark.parametrize("text", [" ", "\n", "\u200b", "x", "?" * 300])
async def test_odd_texts_are_parsed(linguist: SpacyLinguist, text: str) -> None:
    parsed = await linguist.parse(text, deadline=soon())
    assert all(sentence.text.strip() for sentence in parsed.sentences)


async def test_the_vocabulary_does_not_grow(linguist: SpacyLinguist) -> None:
    def size() -> tuple[int, int]:
        return sum(1 for _ in linguist._nlp.vocab), len(linguist._nlp.vocab.strings)

    before = size()
    for number in range(20):
        await linguist.parse(f"Zorblax{number} visited qwyjibo{number}ville.", deadline=soon())
    assert size() == before


async def test_calls_side_by_side_do_not_disturb_each_other(linguist: SpacyLinguist, parsed: Linguistics) -> None:
    found = await asyncio.gather(
        *(linguist.parse(text, deadline=soon()) for text in [TEXT, "Berlin is large.", TEXT, "Paris is old."] * 3)
    )
    assert found[0] == found[2] == found[8] == parsed
    assert [e.span.text for e in found[1].entities] == ["Berlin"]


async def test_a_late_call_is_refused(linguist: SpacyLinguist) -> None:
    with pytest.raises(DeadlineExceeded):
        await linguist.parse(TEXT, deadline=0.0)


async def test_it_wants_one_lane_of_its_own(models: Path, linguist: SpacyLinguist, lanes: Lanes) -> None:
    assert linguist.description.task is ModelTask.LINGUISTICS
    with pytest.raises(ValueError, match="exactly one lane"):
        SpacyLinguist(open_artefact(models, "en_core_web_sm"), lanes)
