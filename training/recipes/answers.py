"""Measures which answers are called grounded: 100 questions about small manuals, asked as the service asks them."""

import asyncio
import hashlib
import json
import re
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from server.domain.chat import ChatDone, ChatOptions, FinishReason, Message, TextDelta
from server.domain.models import ModelTask
from server.domain.rag import AskDone, Passage, Query, Retrieval
from server.domain.usage import Usage, UsageSource
from server.inference.onnx_text import load
from server.inference.scheduler import Scheduler
from server.inference.text import TextEmbedder
from server.models.artefact import Artefact, read_manifest
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.tasks.chat.embedded import EmbeddedModel
from server.tasks.chat.openai_upstream import Upstream
from server.tasks.rag.answerer import Answerer
from server.tasks.rag.engine import RagEngine
from server.tasks.rag.grounding import is_grounded
from training.datasets.manuals import DIGEST, HALVES, Question, digest, read_collections, read_questions
from training.errors import TrainingError
from training.recipe import Outcome, Workspace
from training.report import REPORT

EMBEDDER, LLM = "embedder", "qwen2.5-coder-1.5b-instruct"
MIN_PRECISION, MIN_RECALL = 0.95, 0.8
TOP_K = 3
CONTEXT_TOKENS = 4096
_HOURS = 6 * 3600.0  # for all answers on a busy machine
TEXT = """
{questions} questions about manuals of similar products, in eight languages; {unanswerable} of them have no answer. The
rules were written with the development half; the held-out half has other collections.

Precision is the share of right answers among those that are called grounded; recall is the share of right answers that
are called grounded. Abstained: of all answers. Wrong answers accepted: of one written wrong answer for each question,
with the value of another product, row, column or unit, or the question's own words.
"""


class Judged(NamedTuple):
    """An answer to a question: what the server says of it, and whether it is right."""

    question: Question
    answer: str
    is_right: bool
    grounded: bool
    abstained: bool
    wrong_accepted: bool


def build(workspace: Workspace) -> Outcome:
    """Ask all questions. Raises TrainingError if the held-out half is below MIN_PRECISION or MIN_RECALL."""
    if digest() != DIGEST:
        raise TrainingError(f'the manuals were changed: set DIGEST of training/datasets/manuals.py to "{digest()}"')
    judged = asyncio.run(_ask_all(workspace))
    rows = {half: measure([each for each in judged if each.question.half == half]) for half in HALVES}
    table = to_table(rows)
    workspace.progress.say(f"\n{table}\n")
    unanswerable = sum(each.question.right is None for each in judged)
    text = TEXT.format(questions=len(judged), unanswerable=unanswerable)
    report = f"# Grounded answers\n{text}\n{table}\n\n{_list(judged)}"
    (workspace.folder / REPORT).write_text(report, encoding="utf-8")
    held_out = rows[HALVES[1]]
    if held_out["precision"] < MIN_PRECISION or held_out["recall"] < MIN_RECALL:
        raise TrainingError(
            f"grounded has a precision of {held_out['precision']:.3f} at a recall of {held_out['recall']:.3f}; "
            f"{MIN_PRECISION} at {MIN_RECALL} are required"
        )
    return Outcome(metrics={f"{name}_{half}": value for half, row in rows.items() for name, value in row.items()})


def measure(judged: Sequence[Judged]) -> dict[str, float]:
    """The measures of some answers."""
    grounded = [each for each in judged if each.grounded]
    right = [each for each in judged if each.is_right]
    both = sum(each.is_right for each in grounded)
    return {
        "answers": float(len(judged)),
        "right": float(len(right)),
        "precision": both / len(grounded) if grounded else 1.0,
        "recall": both / len(right) if right else 1.0,
        "abstained": sum(each.abstained for each in judged) / len(judged),
        "wrong answers accepted": sum(each.wrong_accepted for each in judged) / len(judged),
    }


def to_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A table in Markdown."""
    columns = list(next(iter(rows.values())))
    lines = [f"| half | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for name, row in rows.items():
        cells = [f"{row[column]:.0f}" if column in ("answers", "right") else f"{row[column]:.3f}" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _list(judged: Sequence[Judged]) -> str:
    """Every answer, so that a reader can check what counts as right."""
    lines = ["| question | answer | right | grounded | abstained |", "| --- | --- | --- | --- | --- |"]
    for each in judged:
        marks = " | ".join("yes" if mark else "" for mark in (each.is_right, each.grounded, each.abstained))
        answer = " ".join(each.answer.split()).replace("|", "\\|")
        lines.append(f"| {each.question.question} | {answer} | {marks} |")
    return "\n".join(lines) + "\n"


async def _ask_all(workspace: Workspace) -> list[Judged]:
    questions = read_questions()
    deadline = time.monotonic() + _HOURS
    with tempfile.TemporaryDirectory() as index:
        async with _answerer(workspace, Path(index), deadline) as answerer:
            with workspace.steps(len(questions)) as advance:
                judged = []
                for question in questions:
                    judged.append(await _judge(answerer, question, deadline))
                    advance(1)
                return judged


@asynccontextmanager
async def _answerer(workspace: Workspace, index: Path, deadline: float) -> AsyncGenerator[Answerer, None]:
    """The service's own answerer over the manuals, with answers that are kept for the next build."""
    scheduler = Scheduler(1, 64)
    embedder = TextEmbedder(load(_artefact(workspace, EMBEDDER), ModelTask.EMBEDDING), scheduler)
    engine = RagEngine(index, embedder, scheduler)
    model = EmbeddedModel(
        _artefact(workspace, LLM),
        CircuitBreaker("embedded"),
        slots=1,
        context_tokens=CONTEXT_TOKENS,
        token_seconds=deadline - time.monotonic(),
    )
    try:
        for name, documents in read_collections().items():
            await engine.ingester.add(name, documents, deadline=deadline)
        upstream = await model.start()
        yield Answerer(engine, KeptAnswers(upstream, workspace.intermediate))
    finally:
        await model.close()
        await engine.close()
        scheduler.close()


def _artefact(workspace: Workspace, name: str) -> Artefact:
    folder = workspace.artefact(name)
    return Artefact(folder, read_manifest(folder), "")


async def _judge(answerer: Answerer, question: Question, deadline: float) -> Judged:
    passages: Sequence[Passage] = ()
    answer, done = "", None
    async for event in answerer.stream(Query(question.question, question.collection, TOP_K), deadline=deadline):
        match event:
            case Retrieval():
                passages = event.passages
            case TextDelta():
                answer += event.text
            case AskDone():
                done = event
    assert done, "every answer ends so"
    is_right = bool(question.right and not done.abstained and re.search(question.right, answer, re.IGNORECASE))
    accepted = is_grounded(question.wrong, question.question, passages)
    return Judged(question, answer, is_right, done.grounded, done.abstained, accepted)


class KeptAnswers:
    """A ChatModel over an upstream, without a ledger. Answers are kept in a folder: the model takes minutes for all."""

    def __init__(self, upstream: Upstream, folder: Path) -> None:
        self.description = upstream.description
        self.prompt_tokens = upstream.prompt_tokens
        self.estimate = upstream.estimate
        self._upstream = upstream
        self._folder = folder

    async def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[TextDelta | ChatDone, None]:
        """The kept answer, or the upstream's."""
        model = self.description.identity
        key = json.dumps([model.name, model.version, [[each.role, each.content] for each in messages], repr(options)])
        kept = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.txt"
        if not kept.exists():
            async with aclosing(self._upstream.stream(messages, options, deadline=deadline)) as events:
                text = "".join([event.text async for event in events if isinstance(event, TextDelta)])
            kept.write_text(text, encoding="utf-8")
        yield TextDelta(kept.read_text(encoding="utf-8"))
        yield ChatDone(FinishReason.STOP, Usage(0, 0, UsageSource.ESTIMATED), model)
