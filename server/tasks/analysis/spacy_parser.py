"""Entities, sentences, syntax and key phrases with a spaCy pipeline, in a child process.

spaCy holds the GIL while it parses; a crash of native code ends the child alone. docs/notes/spacy-process.md has the
costs, and why it is not a ProcessPoolExecutor.
"""

import json
import logging
import multiprocessing
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from server.domain.analysis import Entity, KeyPhrase, ParsedText, TextSpan, Token
from server.domain.errors import ModelLoading, ModelUnavailable, ServerStopping
from server.domain.models import ModelTask
from server.inference.computation import Computation
from server.inference.result_cache import ResultCache
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact

log = logging.getLogger(__name__)
S = TypeVar("S", Entity, KeyPhrase, TextSpan, Token)

_PROBE = "Is Ada Lovelace ready to answer in London?"
_TOKEN_BYTES = 450  # of a token in memory; the other results take less
_ANSWER_SECONDS = 60.0  # for a text, and for the start of the child; then it hangs


class SpacyParser:
    """A TextParser from an artefact's pipeline/ folder, between its construction and close().

    `lane` must have a single lane and serve nothing else: its thread waits for the child, which parses one text at a
    time. If the child ends, the call that it served raises ModelLoading, and another child is started at once. The
    child also ends with the server. Construct it on a thread: that blocks until the child has parsed a text. Raises
    ModelUnavailable if it cannot. `cache_bytes` of results are kept for texts that recur.
    """

    def __init__(self, artefact: Artefact, lane: Scheduler, *, cache_bytes: int = 0) -> None:
        if lane.count != 1:
            raise ValueError("a spaCy pipeline works on exactly one lane")
        self.description = artefact.describe(ModelTask.LINGUISTICS, "spacy")
        self._lane = lane
        name = self.description.identity.name
        self._computation = Computation(name, self._parse, lane.counters[name], len)
        self._cache: ResultCache[ParsedText] = ResultCache(cache_bytes, _size, self._computation.counters)
        self._pipeline = str(artefact.part("pipeline").resolve())
        self._closed = False
        self._start()
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
        return self._process.pid

    def close(self) -> None:
        """End the child; the call that it serves raises ServerStopping."""
        self._closed = True
        self._kill()

    def _kill(self) -> None:
        self._process.kill()  # it has nothing to save
        self._process.wait()

    def _start(self) -> None:
        self._connection, childs = multiprocessing.Pipe()
        with childs:
            module, descriptor = "server.tasks.analysis.spacy_process", childs.fileno()
            self._process = subprocess.Popen(  # noqa: S603  # the command is our own
                [sys.executable, "-P", "-m", module, str(descriptor), self._pipeline],
                stdin=subprocess.DEVNULL,
                pass_fds=[descriptor],
                process_group=0,  # Ctrl-C is for the server, which drains. No session of its own: see priority.py.
            )

    def _parse(self, texts: Sequence[str]) -> list[ParsedText]:
        try:
            return [_decode(text, self._ask(text)) for text in texts]
        except (EOFError, OSError) as error:
            self._kill()
            self._connection.close()
            if self._closed:
                raise ServerStopping("the server is stopping") from error
            log.error("spaCy's process ended with status %s; it is started again", self._process.returncode)
            self._start()
            raise ModelLoading("spaCy's process is being started again", retry_after=2.0) from error

    def _ask(self, text: str) -> bytes:
        self._connection.send_bytes(text.encode())
        if not self._connection.poll(_ANSWER_SECONDS):
            raise TimeoutError
        return self._connection.recv_bytes()


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
