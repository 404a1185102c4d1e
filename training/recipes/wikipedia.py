"""The demonstration collection "wikipedia": leads of Wikipedia's vital articles, embedded by the embedder.

The cache keeps documents, passages and vectors; installing them writes a generation of the collection, with the
embedder that is published as the one that made the vectors.
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
from server.models.artefact import MANIFEST, open_artefact
from server.tasks.rag.splitter import split
from server.vectorstore.admin import publish_collection
from server.vectorstore.segment import Content
from training.datasets.wikipedia import Lead, read_leads
from training.graphs.evaluate import run_graph
from training.recipe import Outcome, Workshop
from training.reports.report import write_report

LICENCE = "CC BY-SA 4.0, © Wikipedia contributors"
DOCUMENTS = 7_000  # of 10,033: embedding takes time, and topics needs thousands for its accuracy
TEXT = """
The first paragraphs of Wikipedia's vital articles in English, split and embedded as the service does it with the
documents that it is given.
"""


def build(workshop: Workshop) -> Outcome:
    """Split and embed all documents."""
    leads = choose(read_leads(workshop.input("wikipedia-leads")["summaries_en-us.json"]))
    documents = [
        Document(
            id=lead.title,
            title=lead.title,
            text=lead.text,
            uri=f"https://en.wikipedia.org/wiki/{quote(lead.title.replace(' ', '_'))}",
            metadata={"topic": lead.topic, "licence": LICENCE},
        )
        for lead in leads
    ]
    passages = [(owner, *span) for owner, document in enumerate(documents) for span in split(document.text)]
    texts = [embedded_text(documents[owner].title, documents[owner].text[begin:end]) for owner, begin, end in passages]
    embedder = workshop.made("embedder")
    schema = json.loads((embedder / MANIFEST).read_bytes())["schema"]
    with workshop.steps(len(texts)) as task:
        vectors = run_graph(embedder, schema, "embedding", texts, task)

    np.save(workshop.folder / "vectors.npy", vectors)
    np.save(workshop.folder / "passages.npy", np.array(passages, np.int32))
    lines = [json.dumps(asdict(document), ensure_ascii=False) for document in documents]
    (workshop.folder / "documents.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    metrics = {"documents": float(len(documents)), "passages": float(len(passages))}
    write_report(workshop.folder, DEFAULT_COLLECTION, TEXT, metrics)
    return Outcome(metrics=metrics)


def choose(leads: Sequence[Lead]) -> list[Lead]:
    """DOCUMENTS of them by the digests of their titles, in their order: always the same, and of all topics."""
    digests = {lead.title: hashlib.sha256(lead.title.encode()).digest() for lead in leads}
    chosen = set(sorted(digests, key=digests.__getitem__)[:DOCUMENTS])
    return [lead for lead in leads if lead.title in chosen]


def read_documents(folder: Path) -> tuple[Document, ...]:
    """The documents of what `build` made."""
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
