"""Entities, sentences, syntax and key phrases with a spaCy pipeline, in a process of its own.

spaCy holds the GIL while it parses, and whatever else the server does must wrest it away every 5 ms. Of a text of 5,000
characters, 290 ms of CPU time are spent in the process and 6 ms here, on reading its answer (medians of nine). What is
left of the effect on Classify is the core that parsing takes: the process has a lower priority than the lanes.
tests/bench/analyze.py measures it. A crash of native code ends the process alone.
"""

import json
import logging
import multiprocessing
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from server.domain.analysis import Entity, KeyPhrase, ParsedText, Span, Token
from server.domain.errors import ModelLoading, ModelUnavailable, ServerStopping
from server.domain.models import ModelTask
from server.inference.result_cache import ResultCache
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact
from server.models.describe import describe

log = logging.getLogger(__name__)

_PROBE = "Is Ada Lovelace ready to answer in London?"
_SPAN_BYTES = 450  # of a token with its span and its words; the other results have fewer
_ANSWER_SECONDS = 60.0  # for one text, and for the first one of a process, which must start; then it hangs


class SpacyParser:
    """A TextParser from an artefact's pipeline/ folder, between its construction and close().

    `lane` must be a single one and its own: its thread waits for the process, which parses one text at a time. If the
    process ends, the call that it worked on raises ModelLoading, and another process is started at once. The process
    also ends with the server. Blocks: construct it on a thread. Raises ModelUnavailable if the process cannot parse.
    `cache_bytes` of results are kept for texts that recur.
    """

    def __init__(self, artefact: Artefact, lane: Scheduler, *, cache_bytes: int = 0) -> None:
        if lane.count != 1:
            raise ValueError("a spaCy pipeline works on exactly one lane")
        self.description = describe(artefact, ModelTask.LINGUISTICS, "spacy")
        self._lane = lane
        self._work = lane.computation(self.description.identity.name, self._parse, cost=len)
        self._cache: ResultCache[ParsedText] = ResultCache(cache_bytes, _weigh, self._work.counters)
        self._pipeline = str(artefact.part("pipeline").resolve())
        self._closed = False
        self._start()
        try:
            self._parse([_PROBE])
        except ModelLoading as error:
            self.close()
            raise ModelUnavailable("spaCy cannot be run; the server's log says why") from error

    async def parse(self, text: str, *, deadline: float) -> ParsedText:
        """All of it; one parse serves every task."""
        (parsed,) = await self._cache.through([text], partial(self._lane.map, self._work, deadline=deadline))
        return parsed

    @property
    def pid(self) -> int:
        """The process, for whoever watches it."""
        return self._process.pid

    def close(self) -> None:
        """End the process; a call that it works on raises ServerStopping."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        self._process.kill()  # it keeps nothing
        self._process.wait()

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # the command is our own
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "server.tasks.analysis.spacy_process",
                    str(theirs.fileno()),
                    self._pipeline,
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Ctrl-C in a terminal is for the server, which lets running calls finish. No session: see priority.py.
                process_group=0,
            )

    def _parse(self, texts: Sequence[str]) -> list[ParsedText]:
        try:
            return [decode(text, self._ask(text)) for text in texts]
        except (EOFError, OSError) as error:
            self._end()
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


def decode(text: str, answer: bytes) -> ParsedText:
    """What the process found in `text`."""
    found: dict[str, list[Any]] = json.loads(answer)

    def span(start: int, end: int) -> Span:
        return Span(text[start:end], start, end)

    return ParsedText(
        entities=tuple(Entity(span(start, end), kind) for start, end, kind in found["entities"]),
        key_phrases=tuple(KeyPhrase(span(start, end), *rest) for start, end, *rest in found["key_phrases"]),
        sentences=tuple(span(start, end) for start, end in found["sentences"]),
        tokens=tuple(Token(span(start, end), *rest) for start, end, *rest in found["tokens"]),
    )


def _weigh(parsed: ParsedText) -> int:
    parts = (parsed.entities, parsed.key_phrases, parsed.sentences, parsed.tokens)
    return _SPAN_BYTES * (1 + sum(map(len, parts)))
