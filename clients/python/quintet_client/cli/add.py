"""`quintet add`: files and folders into a collection."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from quintet.v1 import common_pb2, rag_pb2

from quintet_client.cli.failures import FAILED, OK, named
from quintet_client.cli.files import File, Skipped, collect, documents_of
from quintet_client.cli.options import AddCommand, batches
from quintet_client.cli.parsers import Unusable
from quintet_client.cli.progress import progress_bar
from quintet_client.cli.terminal import Terminal, as_dict
from quintet_client.client import QuintetClient
from quintet_client.contract import rules
from quintet_client.inputs import BATCH_BYTES, MAX_DOCUMENTS, Document

MAX_IDS = rules(rag_pb2.DeleteDocumentsRequest, "document_ids").repeated.max_items
_SHOWN_OF_A_REASON = 3


class Batch(NamedTuple):
    """The documents of one request, and the files that are complete with it, each with its number of parts."""

    documents: list[Document]
    complete: list[tuple[File, int]]


def register(add: AddCommand) -> None:
    command = add(
        "add",
        run,
        "COLLECTION FILE|FOLDER ...",
        "add text, Markdown, HTML and PDF files to a collection, or replace them",
        """  quintet add handbook docs/ README.md
  quintet add papers ~/papers

A document's id is its path relative to the current folder. For a path outside it, the id is relative to
the parent of the given file or folder. A file too long for one document becomes several: PATH#1, PATH#2 ...
Folders are searched for .txt, .text, .md, .markdown, .html, .htm, .xhtml and .pdf; hidden files are left out.
HTML and PDF need the extra: pip install 'quintet-client[ingest]'. Unchanged documents are not embedded again,
so an interrupted run can simply be repeated.""",
    )
    command.add_argument("collection", metavar="COLLECTION", help="created if it is new")
    command.add_argument("paths", metavar="FILE|FOLDER", nargs="+", help="what to add")


def run(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Add the usable files in batches; report the skipped ones with the reason."""
    files, skipped = collect(args.paths)
    done = _Done(client, args.collection)
    total = sum(file.size for file in files)
    finished = size = 0
    try:
        with progress_bar(hidden=out.as_json) as show:
            show(0, total, f"{len(files)} files")
            for documents, complete in _batches(files, skipped):
                if documents:
                    done.add(documents, complete)
                finished += len(complete)
                size += sum(file.size for file, _ in complete)
                show(size, total, f"{finished} of {len(files)} files")
    except BaseException:  # an interruption too
        if any(done.counts.values()):
            out.warn(f"{args.collection}: {done} before the failure; repeat the command to continue")
        raise
    if out.as_json:
        counts = {f"{name}_count": number for name, number in done.counts.items()}
        out.json({**counts, "skipped": [each._asdict() for each in skipped], "index": as_dict(done.index)})
    elif any(done.counts.values()):
        left = f", {len(skipped)} skipped" if skipped else ""
        out.line(f"{args.collection}: {done}{left}; generation {done.index.generation}")
    else:
        out.warn("nothing was added: found no usable text, Markdown, HTML or PDF")
    if skipped and not out.as_json:
        _write_skipped(out, skipped)
    return OK if any(done.counts.values()) else FAILED


class _Done:
    """The changes to the collection so far."""

    def __init__(self, client: QuintetClient, collection: str) -> None:
        self._client = client
        self._collection = collection
        self.counts = dict.fromkeys(("added", "updated", "unchanged", "deleted"), 0)
        self.index = common_pb2.IndexRef(collection=collection)

    def __str__(self) -> str:
        return ", ".join(f"{number:,} {name}" for name, number in self.counts.items() if number)

    def add(self, documents: Sequence[Document], complete: Sequence[tuple[File, int]]) -> None:
        with named("documents", [document["id"] for document in documents]):
            response = self._client.add_documents(self._collection, documents)
        for name in ("added", "updated", "unchanged"):
            self.counts[name] += getattr(response, f"{name}_count")
        self.index = response.index
        self._delete_stale([(file.name, parts) for file, parts in complete if parts])

    def _delete_stale(self, complete: Sequence[tuple[str, int]]) -> None:
        """Delete parts that a file had when it was longer, or the document that it was when it was shorter."""
        stale = [name for name, parts in complete if parts > 1]
        further, deleted = 1, 1
        while deleted:
            # Parts are numbered without gaps: where one is missing, none follows.
            stale += [f"{name}#{further + (parts if parts > 1 else 0)}" for name, parts in complete]
            deleted = 0
            for ids in batches(stale, MAX_IDS):
                response = self._client.delete_documents(self._collection, ids)
                deleted += response.deleted_count
                self.index = response.index
            self.counts["deleted"] += deleted
            further, stale = further + 1, []


def _batches(files: Sequence[File], skipped: list[Skipped]) -> Iterator[Batch]:
    """Group documents into requests; unusable files are added to `skipped`."""
    batch, size = Batch([], []), 0
    for file in files:
        try:
            documents = documents_of(file)
        except Unusable as error:
            skipped.append(Skipped(str(file.path), str(error)))
            documents = []
        for document in documents:
            length = len(document["text"].encode())
            if batch.documents and (len(batch.documents) == MAX_DOCUMENTS or size + length > BATCH_BYTES):
                yield batch
                batch, size = Batch([], []), 0
            batch.documents.append(document)
            size += length
        batch.complete.append((file, len(documents)))
    yield batch


def _write_skipped(out: Terminal, skipped: Sequence[Skipped]) -> None:
    """Write a table with the first few files of each reason."""
    counts = Counter(each.reason for each in skipped)
    rows: list[tuple[str, str]] = []
    for reason, count in counts.items():
        paths = [each.path for each in skipped if each.reason == reason]
        rows += [(path, reason) for path in paths[:_SHOWN_OF_A_REASON]]
        if count > _SHOWN_OF_A_REASON:
            rows.append((f"and {count - _SHOWN_OF_A_REASON} more", reason))
    out.line()
    out.table(("SKIPPED", "WHY"), rows)
