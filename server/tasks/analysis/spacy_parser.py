"""Entities, sentences, syntax and key phrases with a spaCy pipeline, in a child process.

spaCy holds the GIL while it parses; a crash of native code ends the child alone. docs/notes/spacy-process.md has the
costs, and why it is not a ProcessPoolExecutor.
"""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from server.domain.analysis import Entity, KeyPhrase, ParsedText, TextSpan, Token
from server.domain.errors import ModelLoading, ModelUnavailable
from server.domain.models import ModelTask
from server.inference.computation import Computation
from server.inference.result_cache import ResultCache
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact
from server.tasks.analysis.spacy_child import SpacyChild

S = TypeVar("S", Entity, KeyPhrase, TextSpan, Token)

_PROBE = "Is Ada Lovelace ready to answer in London?"
_OVERHEAD = 100  # code points; 6 ms
_TOKEN_BYTES = 450  # of a token in memory; the other results take less


class SpacyParser:
    """A TextParser from an artefact's pipeline/ folder, between its construction and close().

    `lane` must have a single lane and serve nothing else: its thread waits for the child, which parses one text at a
    time. If the child ends or hangs, the call that it served raises ModelLoading within 6 s, and another child is
    started. The child also ends with the server. Construct it on a thread that lives as long as the parser: that blocks
    until the child has parsed a text. Raises ModelUnavailable if it cannot. `cache_bytes` of results are kept for texts
    that recur.
    """

    def __init__(self, artefact: Artefact, lane: Scheduler, *, cache_bytes: int = 0) -> None:
        if lane.count != 1:
            raise ValueError("a spaCy pipeline works on exactly one lane")
        self.description = artefact.describe(ModelTask.LINGUISTICS, "spacy")
        self._lane = lane
        name = self.description.identity.name
        self._computation = Computation(name, self._parse, lane.counters[name], _cost)
        self._cache: ResultCache[ParsedText] = ResultCache(cache_bytes, _size, self._computation.counters)
        self._child = SpacyChild(str(artefact.part("pipeline").resolve()))
        try:
            self._parse([_PROBE])
        except ModelLoading as error:
            self.close()
            raise ModelUnavailable("spaCy cannot be run; the server's log says why") from error

    async def parse(self, text: str, *, deadline: float) -> ParsedText:
        (parsed,) = await self._cache.through([text], partial(self._lane.map, self._computation, deadline=deadline))
        return parsed

    @property
    def pid(self) -> int:
        """The child, whose memory counts as the model's."""
        return self._child.pid

    @property
    def is_lost(self) -> bool:
        """Whether the child cannot be started again."""
        return self._child.is_lost

    def close(self) -> None:
        """End the child; the call that it serves raises ServerStopping."""
        self._child.close()

    def _parse(self, texts: Sequence[str]) -> list[ParsedText]:
        return [self._parse_one(text) for text in texts]

    def _parse_one(self, text: str) -> ParsedText:
        answer = self._child.ask(text)
        try:
            return _decode(text, answer)
        except (ValueError, LookupError, TypeError) as error:  # no answer to this text: it is not to be trusted again
            raise self._child.replaced() from error


def _cost(text: str) -> int:
    """In code points, with the overhead of a text. Without it, a short text that waits for a new child to load its
    pipeline would make long texts seem to take minutes.
    """
    return _OVERHEAD + len(text)


def _decode(text: str, answer: bytes) -> ParsedText:
    """From the lists of spacy_process.Parser.parse()."""
    found: dict[str, list[Any]] = json.loads(answer)

    def spans(kind: type[S], name: str) -> tuple[S, ...]:
        return tuple(kind(text[start:end], start, end, *rest) for start, end, *rest in found[name])

    return ParsedText(
        spans(Entity, "entities"), spans(KeyPhrase, "key_phrases"), spans(TextSpan, "sentences"), spans(Token, "tokens")
    )


def _size(parsed: ParsedText) -> int:
    return _TOKEN_BYTES * (1 + sum(map(len, parsed)))
