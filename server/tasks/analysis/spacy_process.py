"""The process in which spaCy parses: python -m server.tasks.analysis.spacy_process FD PIPELINE

FD is a connection to the server, over which it takes a text and gives a JSON object, again and again, until the
connection ends. `linguist.py` is at its other end and says why there are two processes.
"""

import json
import sys
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from server.domain.analysis import Entity, ParsedText, Span, Token
from server.domain.priority import PARSING, step_back
from server.tasks.analysis.key_phrases import Candidate, rank

_NOUNS = {"NOUN", "PROPN"}


class Parser:
    """A pipeline of spaCy."""

    def __init__(self, pipeline: str) -> None:
        _leave_out_what_no_pipeline_needs()
        import spacy

        self.nlp: Any = spacy.load(pipeline)

    def parse(self, text: str) -> ParsedText:
        """Everything that one parse yields."""
        # Without the zone the vocabulary would keep every new word. What it frees must not be used after it.
        with self.nlp.memory_zone():
            document = self.nlp(text)
            return ParsedText(
                entities=tuple(Entity(_span(entity), entity.label_) for entity in document.ents),
                key_phrases=rank([_candidate(chunk) for chunk in document.noun_chunks]),
                sentences=tuple(_span(sentence) for sentence in document.sents if sentence.text.strip()),
                tokens=_tokens(document),
            )


def encode(parsed: ParsedText) -> bytes:
    """What is sent. The receiver has the text, so spans are offsets."""
    return json.dumps(
        {
            "entities": [[*_offsets(e.span), e.type] for e in parsed.entities],
            "key_phrases": [[*_offsets(k.span), k.score, k.count] for k in parsed.key_phrases],
            "sentences": [_offsets(sentence) for sentence in parsed.sentences],
            "tokens": [[*_offsets(t.span), t.lemma, t.pos, t.tag, t.dependency, t.head] for t in parsed.tokens],
        }
    ).encode()


def _leave_out_what_no_pipeline_needs() -> None:
    """Keep spaCy from importing torch (6 seconds, 190 MB) and its own command line (1 second, 32 MB)."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
    commands = ModuleType("spacy.cli.info")
    commands.info = None  # type: ignore[attr-defined]  # all that spaCy itself takes from there
    sys.modules["spacy.cli"] = sys.modules[commands.__name__] = commands


def main() -> None:
    """Serve until the connection ends."""
    connection: Connection[bytes, bytes] = Connection(int(sys.argv[1]))
    parser = Parser(sys.argv[2])
    step_back(PARSING)  # not before: while the server starts, nobody waits for anything else
    while True:
        try:
            text = connection.recv_bytes().decode()
        except EOFError:
            return
        connection.send_bytes(encode(parser.parse(text)))


def _offsets(span: Span) -> tuple[int, int]:
    return span.start, span.end


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


if __name__ == "__main__":
    main()
