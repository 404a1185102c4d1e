"""Measures how well retrieval finds answers: the FAQ set, indexed and searched as the service does, and variations."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score

from server.domain.rag import embedded_text
from server.inference.reranker import OUTPUT, pairs
from server.models.artefact import MANIFEST, read_manifest
from server.tasks.rag import splitter
from training.datasets.faq import PROJECTS, Section, read_sections
from training.errors import TrainingError
from training.graphs.evaluate import T, run_graph
from training.recipe import Outcome, Workspace
from training.report import REPORT

Floats = NDArray[np.float32]
FLOOR = 0.57  # of the nDCG@10 that is served; less is a regression
DEPTHS = (10, 20, 50)  # how many passages the reranker reorders
TEXT = """
The documentation of Django, Scrapy, Celery and SQLAlchemy, and their own frequently asked questions. A section is right
if it is the answer to the question, or a part of it; the question itself is not indexed. Other sections that answer the
question count as wrong: the figures are lower bounds for comparing variations, and say little about other documents.

Sections are ranked by their best passages, so the size of passages does not change the number of right results.
nDCG@10 weighs right sections by their rank among the first ten; hit@k is the share of questions with a right section
among the first k; MRR@10 is the mean of one over the rank of the first right section. The last column ranks passages
instead of sections. With {questions} questions the standard error of a share is about {error:.3f}: smaller differences
mean little.
"""


class Variation(NamedTuple):
    """A way to index: the embedder's engine, whether titles are embedded, how long passages may be."""

    name: str
    engine: str = ""  # the one that is served
    with_title: bool = True
    max_words: int = splitter.MAX_WORDS


SERVED = Variation("as served")
VARIATIONS = (
    SERVED,
    Variation("without titles", with_title=False),
    Variation("passages of 90 words", max_words=90),
    Variation("embedder in fp32", engine="onnx"),
)


class Index(NamedTuple):
    """Passages as (title, text), the section of each, and the cosine of each question with each passage."""

    passages: list[tuple[str, str]]
    sections: NDArray[np.int64]
    cosines: Floats


def build(workspace: Workspace) -> Outcome:
    """Measure all variations. Raises TrainingError if the served one is below FLOOR."""
    sections = [
        section
        for docs in PROJECTS
        for archive in workspace.input(docs.input).values()
        for section in read_sections(archive, docs)
    ]
    answers = answers_of(sections)
    questions = [question for _, question in answers]
    right = [np.array(numbers) for numbers in answers.values()]
    rows: dict[str, dict[str, float]] = {}
    for variation in VARIATIONS:
        index = _index(workspace, variation, sections, questions)
        rows[variation.name] = measure(index, right, index.cosines)
        if variation is SERVED:
            for depth, scores in _reranked(workspace, index, questions):
                rows[f"as served, first {depth} reranked"] = measure(index, right, scores)
    metrics = rows[SERVED.name]
    table = to_table(rows)
    workspace.progress.say(f"\n{table}\n")
    if metrics["ndcg@10"] < FLOOR:
        raise TrainingError(f"nDCG@10 is {metrics['ndcg@10']:.3f}, and was above {FLOOR}")
    text = TEXT.format(questions=len(answers), error=float(np.sqrt(0.25 / len(answers))))
    (workspace.folder / REPORT).write_text(f"# Retrieval\n{text}\n{table}\n", encoding="utf-8")
    return Outcome(metrics={**metrics, "questions": float(len(answers))})


def answers_of(sections: Sequence[Section]) -> dict[tuple[str, str], list[int]]:
    """For each (page, question) the sections of its answer."""
    found = defaultdict(list)
    for number, section in enumerate(sections):
        if section.question:
            found[section.id.partition("#")[0], section.question].append(number)
    return dict(found)


def measure(index: Index, right: Sequence[NDArray[np.int64]], scores: Floats) -> dict[str, float]:
    """Measures of `scores`, float32 [questions, passages]; `right` has the right sections of each question."""
    count = int(index.sections.max()) + 1
    best = np.full((len(right), count), -np.inf, np.float32)  # score of a section's passages
    for row, values in zip(best, scores, strict=True):
        np.maximum.at(row, index.sections, values)
    best[np.isneginf(best)] = scores.min() - 1  # a section without passages comes last
    gold = np.array([np.isin(np.arange(count), numbers) for numbers in right])
    order = np.argsort(-best, axis=1, kind="stable")[:, :10]
    found = np.take_along_axis(gold, order, axis=1)
    first = np.where(found.any(axis=1), found.argmax(axis=1) + 1, np.inf)
    return {
        "passages": float(len(index.passages)),
        "ndcg@10": float(ndcg_score(gold, best, k=10)),
        "mrr@10": float((1 / first).mean()),
        **{f"hit@{k}": float((first <= k).mean()) for k in (1, 3, 5, 10)},
        "ndcg@10 of passages": float(ndcg_score(gold[:, index.sections], scores, k=10)),
    }


def to_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A table in Markdown."""
    columns = list(next(iter(rows.values())))
    lines = [f"| variation | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for name, row in rows.items():
        cells = [f"{row[column]:,.0f}" if column == "passages" else f"{row[column]:.3f}" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _index(workspace: Workspace, variation: Variation, sections: Sequence[Section], questions: Sequence[str]) -> Index:
    with _split_limits(variation.max_words):
        spans = [(row, *span) for row, section in enumerate(sections) for span in splitter.split(section.text)]
    passages = [(sections[row].title, sections[row].text[begin:end]) for row, begin, end in spans]
    texts = [*questions, *(embedded_text(title if variation.with_title else "", text) for title, text in passages)]
    vectors = _run(workspace, "embedder", "embedding", texts, variation.engine)
    cosines = vectors[: len(questions)] @ vectors[len(questions) :].T
    return Index(passages, np.array([row for row, _, _ in spans]), cosines)


def _reranked(workspace: Workspace, index: Index, questions: Sequence[str]) -> Iterator[tuple[int, Floats]]:
    """For each of DEPTHS, scores that put the first passages in the reranker's order, above all others."""
    order = np.argsort(-index.cosines, axis=1, kind="stable")[:, : max(DEPTHS)]
    read = [
        pair
        for question, rows in zip(questions, order, strict=True)
        for pair in pairs(question, [index.passages[row] for row in rows])
    ]
    logits = _run(workspace, "reranker", OUTPUT, read).reshape(order.shape)
    for depth in DEPTHS:
        scores = index.cosines.copy()
        np.put_along_axis(scores, order[:, :depth], logits[:, :depth] + 100, axis=1)
        yield depth, scores


def _run(workspace: Workspace, model: str, output: str, texts: Sequence[T], engine: str = "") -> Floats:
    """The model's output for the texts. It is stored, so that the next build does not compute it again."""
    folder = workspace.artefact(model)
    key = json.dumps([(folder / MANIFEST).read_text(), engine, texts])
    stored = workspace.intermediate / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
    if stored.exists():
        return np.asarray(np.load(stored), np.float32)
    with workspace.progress.task(f"{workspace.name}: {model} {engine}".rstrip(), len(texts), "steps") as advance:
        values = run_graph(folder, read_manifest(folder).schema, output, texts, advance, engine=engine)
    unfinished = stored.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.save(file, values)
    unfinished.replace(stored)
    return values


@contextmanager
def _split_limits(max_words: int) -> Iterator[None]:
    """Split with other limits: the service has them as constants, because a collection must have one size."""
    names = ("MAX_WORDS", "MAX_CODE_POINTS", "_OVERLAP_WORDS", "_OVERLAP_CODE_POINTS")
    served = {name: getattr(splitter, name) for name in names}
    scale = max_words / splitter.MAX_WORDS
    try:
        for name, value in served.items():
            setattr(splitter, name, round(value * scale))
        yield
    finally:
        for name, value in served.items():
            setattr(splitter, name, value)
