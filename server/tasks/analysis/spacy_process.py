"""The child process of spacy_child.py: python -m server.tasks.analysis.spacy_process FD PIPELINE PARENT

FD is a connection: a text comes in, a JSON object goes out, until the connection ends. PARENT is the server's process.
"""

import ctypes
import json
import os
import signal
import sys
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from server.domain.analysis import TextSpan
from server.domain.priority import PARSING, step_back
from server.tasks.analysis.bounded_tokenizer import BoundedTokenizer
from server.tasks.analysis.key_phrases import Candidate, rank

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_NOUNS = {"NOUN", "PROPN"}


class Parser:
    """A pipeline of spaCy."""

    def __init__(self, pipeline: str) -> None:
        _block_needless_imports()
        import spacy

        self.nlp: Any = spacy.load(pipeline)
        self.nlp.tokenizer = BoundedTokenizer(self.nlp.tokenizer)

    def parse(self, text: str) -> dict[str, list[Any]]:
        """Everything that one parse yields. Each list begins with the offsets of start and end, in code points."""
        # Without the zone the vocabulary would keep every new word. What it frees must not be used after it.
        with self.nlp.memory_zone():
            document = self.nlp(text)
            phrases = rank([_candidate(chunk) for chunk in document.noun_chunks])
            return {
                "entities": [[*_offsets(entity), entity.label_] for entity in document.ents],
                "key_phrases": [phrase[1:] for phrase in phrases],
                "sentences": [_offsets(sentence) for sentence in document.sents if sentence.text.strip()],
                "tokens": _tokens(document),
            }


def main() -> None:
    """Serve until the connection ends."""
    _die_with(int(sys.argv[3]))
    connection: Connection[bytes, bytes] = Connection(int(sys.argv[1]))
    parser = Parser(sys.argv[2])
    step_back(PARSING)  # not before: while the server starts, there is no other work
    while True:
        try:
            text = connection.recv_bytes().decode()
        except EOFError:
            return
        connection.send_bytes(json.dumps(parser.parse(text)).encode())


def _die_with(parent: int) -> None:
    """Let the kernel end this process with the server, also while it is stopped (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before prctl
        os._exit(0)


def _block_needless_imports() -> None:
    """Keep spaCy from importing torch (6 seconds, 190 MB) and its own command line (1 second, 32 MB)."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
    commands = ModuleType("spacy.cli.info")
    commands.info = None  # type: ignore[attr-defined]  # all that spaCy itself takes from there
    sys.modules["spacy.cli"] = sys.modules[commands.__name__] = commands


def _offsets(span: Any) -> tuple[int, int]:
    """Of a span without white space around it. spaCy counts code points, too."""
    text: str = span.text
    start = span.start_char + len(text) - len(text.lstrip())
    return start, start + len(text.strip())


def _tokens(document: Any) -> list[list[Any]]:
    """All tokens but white space, which spaCy keeps as tokens of their own."""
    visible = [token for token in document if not token.is_space]
    index = {token.i: position for position, token in enumerate(visible)}
    return [
        [t.idx, t.idx + len(t), t.lemma_, t.pos_, t.tag_, t.dep_, index.get(_visible_head(t).i, position)]
        for position, t in enumerate(visible)
    ]


def _visible_head(token: Any) -> Any:
    """The nearest head that is not white space; white space that is the root has none."""
    head = token.head
    while head.is_space and head.head.i != head.i:
        head = head.head
    return head


def _candidate(chunk: Any) -> Candidate:
    """A noun chunk without articles, pronouns and other stop words at its ends; no words if nothing is left."""
    tokens = list(chunk)
    while tokens and _is_empty(tokens[0]):
        tokens.pop(0)
    while tokens and _is_empty(tokens[-1]):
        tokens.pop()
    if not any(token.pos_ in _NOUNS for token in tokens):
        return Candidate((), TextSpan("", 0, 0))
    words = tuple(token.lemma_.lower() for token in tokens if not token.is_space)
    span = chunk.doc[tokens[0].i : tokens[-1].i + 1]
    return Candidate(words, TextSpan(span.text.strip(), *_offsets(span)))


def _is_empty(token: Any) -> bool:
    return bool(token.is_space or token.is_punct or token.is_stop or token.pos_ in {"DET", "PRON"})


if __name__ == "__main__":
    main()
