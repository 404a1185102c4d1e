"""Entities, sentences, syntax and key phrases with a spaCy pipeline."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from server.engines.describe import describe
from server.engines.interfaces import Entity, Linguistics, ModelTask, Span, Token
from server.engines.key_phrases import Candidate, rank
from server.runtime.artefact import Artefact
from server.runtime.lanes import Lanes


@contextmanager
def _without_torch() -> Iterator[None]:
    """Keeps spaCy from importing torch, which no pipeline here needs: 6 seconds and 190 MB."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
    try:
        yield
    finally:
        del sys.modules["torch"]


with _without_torch():
    import spacy

_PROBE = "Is Ada Lovelace ready to answer in London?"
_NOUNS = {"NOUN", "PROPN"}


class SpacyLinguist:
    """A Linguist from an artefact's pipeline/ folder.

    `lane` must be a single one and its own: a pipeline's memory zone belongs to one text at a time, and spaCy holds
    the GIL, so a second thread would gain nothing. Blocks: construct it on a thread.
    """

    def __init__(self, artefact: Artefact, lane: Lanes) -> None:
        if lane.count != 1:
            raise ValueError("a spaCy pipeline works on exactly one lane")
        self._lane = lane
        self._nlp: Any = spacy.load(artefact.part("pipeline"))
        self.description = describe(artefact, ModelTask.LINGUISTICS, "spacy")
        self._parse(_PROBE)

    async def parse(self, text: str, *, deadline: float) -> Linguistics:
        """All of it; one parse serves every task."""
        return await self._lane.run(partial(self._parse, text), deadline=deadline)

    def _parse(self, text: str) -> Linguistics:
        # Without the zone the vocabulary would keep every new word. What it frees must not be used after it.
        with self._nlp.memory_zone():
            document = self._nlp(text)
            return Linguistics(
                entities=tuple(Entity(_span(entity), entity.label_) for entity in document.ents),
                key_phrases=rank([_candidate(chunk) for chunk in document.noun_chunks]),
                sentences=tuple(_span(sentence) for sentence in document.sents if sentence.text.strip()),
                tokens=_tokens(document),
            )


def _span(found: Any) -> Span:
    """A span of spaCy without white space around it. spaCy counts code points, too."""
    text: str = found.text
    stripped = text.strip()
    start = found.start_char + len(text) - len(text.lstrip())
    return Span(stripped, start, start + len(stripped))


def _tokens(document: Any) -> tuple[Token, ...]:
    """All tokens but white space, which spaCy keeps as tokens of their own."""
    visible = [token for token in document if not token.is_space]
    index = {token.i: position for position, token in enumerate(visible)}
    return tuple(
        Token(
            span=Span(token.text, token.idx, token.idx + len(token)),
            lemma=token.lemma_,
            pos=token.pos_,
            tag=token.tag_,
            dependency=token.dep_,
            head=index.get(_visible_head(token).i, position),
        )
        for position, token in enumerate(visible)
    )


def _visible_head(token: Any) -> Any:
    """The nearest head that is not white space; white space that is the root has none."""
    head = token.head
    while head.is_space and head.head.i != head.i:
        head = head.head
    return head


def _candidate(chunk: Any) -> Candidate:
    """A noun chunk without articles, pronouns and other empty words at its ends; no words if nothing is left."""
    tokens = list(chunk)
    while tokens and _is_empty(tokens[0]):
        tokens.pop(0)
    while tokens and _is_empty(tokens[-1]):
        tokens.pop()
    if not any(token.pos_ in _NOUNS for token in tokens):
        return Candidate((), _span(chunk))
    words = tuple(token.lemma_.lower() for token in tokens if not token.is_space)
    return Candidate(words, _span(chunk.doc[tokens[0].i : tokens[-1].i + 1]))


def _is_empty(token: Any) -> bool:
    return bool(token.is_space or token.is_punct or token.is_stop or token.pos_ in {"DET", "PRON"})
