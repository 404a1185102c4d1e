"""The demonstration collection "wikipedia": first paragraphs of vital articles, embedded by the embedder.

The cache keeps documents, passages and vectors. Installing them writes a generation of the collection, which records
the published embedder as the one that made the vectors.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import numpy as np

from server.domain.models import ModelIdentity
from server.domain.rag import DEFAULT_COLLECTION, Document, embedded_text
from server.models.artefact import open_artefact, read_manifest
from server.tasks.rag.splitter import split
from server.vectorstore.admin import publish_collection
from server.vectorstore.segment import Content
from training.datasets.wikipedia import ENGLISH, Article, read_articles
from training.graphs.evaluate import run_graph
from training.recipe import Outcome, Workspace
from training.report import write_report

LICENCE = "CC BY-SA 4.0, © Wikipedia contributors"
DOCUMENTS = 7_000  # of 10,033: embedding takes time, and topics needs thousands for its accuracy
TEXT = """
The first paragraphs of Wikipedia's vital articles in English, split and embedded as the service does it with the
documents that it receives.
"""


def build(workspace: Workspace) -> Outcome:
    """Split and embed all documents."""
    documents = [
        Document(
            id=article.title,
            title=article.title,
            text=article.text,
            uri=f"https://en.wikipedia.org/wiki/{quote(article.title.replace(' ', '_'))}",
            metadata={"topic": article.topic, "licence": LICENCE},
        )
        for article in choose(read_articles(workspace.input("wikipedia-leads")[ENGLISH]))
    ]
    passages = [(row, *span) for row, document in enumerate(documents) for span in split(document.text)]
    texts = [embedded_text(documents[row].title, documents[row].text[begin:end]) for row, begin, end in passages]
    embedder = workspace.artefact("embedder")
    with workspace.steps(len(texts)) as advance:
        vectors = run_graph(embedder, read_manifest(embedder).schema, "embedding", texts, advance)

    np.save(workspace.folder / "vectors.npy", vectors)
    np.save(workspace.folder / "passages.npy", np.array(passages, np.int32))
    lines = [json.dumps(asdict(document), ensure_ascii=False) for document in documents]
    (workspace.folder / "documents.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    metrics = {"documents": float(len(documents)), "passages": float(len(passages))}
    write_report(workspace.folder, DEFAULT_COLLECTION, TEXT, metrics)
    return Outcome(metrics=metrics)


def choose(articles: Sequence[Article]) -> list[Article]:
    """DOCUMENTS of them, chosen by the digests of their titles: always the same ones, and of all topics."""
    digests = {article.title: hashlib.sha256(article.title.encode()).digest() for article in articles}
    chosen = set(sorted(digests, key=digests.__getitem__)[:DOCUMENTS])
    return [article for article in articles if article.title in chosen]


def read_documents(folder: Path) -> tuple[Document, ...]:
    """The documents that `build` wrote."""
    with (folder / "documents.jsonl").open(encoding="utf-8", newline="\n") as lines:
        return tuple(Document(**json.loads(line)) for line in lines)


def install(folder: Path, index: Path, models: Path) -> None:
    """Write what `build` made as the next generation of the collection."""
    embedder = open_artefact(models, "embedder")
    vectors = np.load(folder / "vectors.npy")
    content = Content(
        embedder=ModelIdentity("embedder", embedder.manifest.version, embedder.digest),
        documents=read_documents(folder),
        passages=np.load(folder / "passages.npy"),
        vectors=[vectors],
        dimensions=vectors.shape[1],
    )
    publish_collection(index, DEFAULT_COLLECTION, content)
