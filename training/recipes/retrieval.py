"""How well retrieval finds answers: the FAQ set, indexed and searched as the service does it, and variations."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score

from server.domain.rag import embedded_text
from server.inference.reranker import pairs
from server.models.artefact import MANIFEST
from server.tasks.rag import splitter as passages
from training.datasets.faq import PROJECTS, Section, read_sections
from training.errors import TrainingError
from training.graphs.evaluate import run_graph
from training.progress import Task
from training.recipe import Outcome, Workshop
from training.recipes.reranker import run_pairs
from training.reports.report import REPORT

Floats = NDArray[np.float32]
FLOOR = 0.57  # nDCG@10 of what is served; less is a step back
DEPTHS = (10, 20, 50)  # how many passages the reranker reorders
TEXT = """
The documentation of Django, Scrapy, Celery and SQLAlchemy, and their own frequently asked questions. A section is right
if it is the answer to the question, or a part of it; the question itself is withheld from what is indexed. Other
sections may answer too, and count as wrong: the figures are a floor, to compare one way with another, and not a
promise for other documents.

Sections are ranked by their best passages, so that the size of passages does not change what there is to be found.
nDCG@10 weighs right sections by their rank among the first ten; hit@k is the share of questions with a right one among
the first k; MRR@10 the mean of one over the rank of the first right one. The last column counts every passage of the
answer instead, as a list of passages shows them. With {questions} questions the standard error of a share is about
{error:.3f}: differences below that mean little.
"""


class Variation(NamedTuple):
    """A way to index: the embedder's engine, whether titles are embedded, how long passages may be."""

    name: str
    engine: str | None = None  # the one that is served
    with_title: bool = True
    max_words: int = passages.MAX_WORDS


SERVED = Variation("as served")
VARIATIONS = (
    SERVED,
    Variation("without titles", with_title=False),
    Variation("passages of 90 words", max_words=90),
    Variation("embedder in fp32", engine="onnx"),
)


class Index(NamedTuple):
    """Passages as (title, text), the section of each, and the cosine of every question with every passage."""

    passages: list[tuple[str, str]]
    owners: NDArray[np.int64]
    cosines: Floats


def build(workshop: Workshop) -> Outcome:
    """Measure all variations; raise TrainingError if what is served is below FLOOR."""
    sections = [
        section
        for docs in PROJECTS
        for archive in workshop.input(docs.input).values()
        for section in read_sections(archive, docs)
    ]
    answers = answers_of(sections)
    questions = [question for _, question in answers]
    right = [np.array(owners) for owners in answers.values()]
    rows: dict[str, dict[str, float]] = {}
    for variation in VARIATIONS:
        index = _index(workshop, variation, sections, questions)
        rows[variation.name] = measure(index, right, index.cosines)
        if variation is SERVED:
            for depth, scores in _reranked(workshop, index, questions):
                rows[f"as served, first {depth} reranked"] = measure(index, right, scores)
    metrics = rows[SERVED.name]
    table = to_table(rows)
    workshop.progress.say(f"\n{table}\n")
    if metrics["ndcg@10"] < FLOOR:
        raise TrainingError(f"nDCG@10 is {metrics['ndcg@10']:.3f}, and was above {FLOOR}")
    text = TEXT.format(questions=len(answers), error=float(np.sqrt(0.25 / len(answers))))
    (workshop.folder / REPORT).write_text(f"# Retrieval\n{text}\n{table}\n", encoding="utf-8")
    return Outcome(metrics={**metrics, "questions": float(len(answers))})


def answers_of(sections: Sequence[Section]) -> dict[tuple[str, str], list[int]]:
    """For each (page, question) the sections of its answer."""
    found = defaultdict(list)
    for number, section in enumerate(sections):
        if section.question:
            found[section.id.partition("#")[0], section.question].append(number)
    return dict(found)


def measure(index: Index, right: Sequence[NDArray[np.int64]], scores: Floats) -> dict[str, float]:
    """The measures of `scores`, float32 [questions, passages], given the sections that are `right` for each."""
    count = int(index.owners.max()) + 1
    best = np.full((len(right), count), -np.inf, np.float32)  # of a section's passages
    for row, values in zip(best, scores, strict=True):
        np.maximum.at(row, index.owners, values)
    best[np.isneginf(best)] = scores.min() - 1  # a section without passages comes last
    gold = np.array([np.isin(np.arange(count), owners) for owners in right])
    order = np.argsort(-best, axis=1, kind="stable")[:, :10]
    found = np.take_along_axis(gold, order, axis=1)
    first = np.where(found.any(axis=1), found.argmax(axis=1) + 1, np.inf)
    return {
        "passages": float(len(index.passages)),
        "ndcg@10": float(ndcg_score(gold, best, k=10)),
        "mrr@10": float((1 / first).mean()),
        **{f"hit@{k}": float((first <= k).mean()) for k in (1, 3, 5, 10)},
        "ndcg@10 of passages": float(ndcg_score(gold[:, index.owners], scores, k=10)),
    }


def to_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown."""
    columns = list(next(iter(rows.values())))
    lines = [f"| variation | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for name, row in rows.items():
        cells = [f"{row[column]:,.0f}" if column == "passages" else f"{row[column]:.3f}" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _index(workshop: Workshop, variation: Variation, sections: Sequence[Section], questions: Sequence[str]) -> Index:
    with _limits(variation.max_words):
        spans = [(owner, *span) for owner, section in enumerate(sections) for span in passages.split(section.text)]
    cut = [(sections[owner].title, sections[owner].text[begin:end]) for owner, begin, end in spans]
    texts = [embedded_text(title if variation.with_title else "", text) for title, text in cut]
    read = [*questions, *texts]

    def embed(task: Task) -> Floats:
        folder = workshop.made("embedder")
        return run_graph(folder, _schema(folder), "embedding", read, task, engine=variation.engine)

    vectors = _kept(workshop, "embedder", read, embed, variation.engine or "")
    cosines = vectors[: len(questions)] @ vectors[len(questions) :].T
    return Index(cut, np.array([owner for owner, _, _ in spans]), cosines)


def _reranked(workshop: Workshop, index: Index, questions: Sequence[str]) -> Iterator[tuple[int, Floats]]:
    """For each of DEPTHS, the cosines with the first so many replaced by the reranker's scores, above all others."""
    order = np.argsort(-index.cosines, axis=1, kind="stable")[:, : max(DEPTHS)]
    read = [
        pair
        for question, rows in zip(questions, order, strict=True)
        for pair in pairs(question, [index.passages[row] for row in rows])
    ]

    def rerank(task: Task) -> Floats:
        folder = workshop.made("reranker")
        return run_pairs(folder, _schema(folder), read, task)

    logits = _kept(workshop, "reranker", read, rerank).reshape(order.shape)
    for depth in DEPTHS:
        scores = index.cosines.copy()
        np.put_along_axis(scores, order[:, :depth], logits[:, :depth] + 100, axis=1)
        yield depth, scores


def _kept(
    workshop: Workshop, model: str, texts: Sequence[object], run: Callable[[Task], Floats], how: str = ""
) -> Floats:
    """What `run` makes of the texts; it is kept, so that another attempt does not wait for it again."""
    decisive = json.dumps([(workshop.made(model) / MANIFEST).read_text(), how, texts])
    kept = workshop.kept / f"{hashlib.sha256(decisive.encode()).hexdigest()}.npy"
    if kept.exists():
        return np.asarray(np.load(kept), np.float32)
    with workshop.progress.task(f"{workshop.label}: {model} {how}".rstrip(), len(texts), "steps") as task:
        values = run(task)
    _save(kept, values)
    return values


def _schema(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / MANIFEST).read_bytes())["schema"])


def _save(path: Path, values: Floats) -> None:
    aside = path.with_suffix(".part")
    with aside.open("wb") as file:
        np.save(file, values)
    aside.replace(path)


@contextmanager
def _limits(max_words: int) -> Iterator[None]:
    """Split with other limits for once: the service has them as constants, for an index must have one size."""
    names = ("MAX_WORDS", "MAX_CODE_POINTS", "_OVERLAP_WORDS", "_OVERLAP_CODE_POINTS")
    served = {name: getattr(passages, name) for name in names}
    scale = max_words / passages.MAX_WORDS
    try:
        for name, value in served.items():
            setattr(passages, name, round(value * scale))
        yield
    finally:
        for name, value in served.items():
            setattr(passages, name, value)
