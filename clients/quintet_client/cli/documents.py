"""`quintet ask`, `quintet retrieve` and `quintet add`"""

import argparse
from collections.abc import Iterator, Sequence

from quintet.v1 import common_pb2, rag_pb2

from quintet_client.cli.answers import show, tell_end
from quintet_client.cli.failures import FAILED, OK, named
from quintet_client.cli.files import Skipped, collect
from quintet_client.cli.options import AddCommand, count, text_or_stdin
from quintet_client.cli.terminal import Terminal, as_dict
from quintet_client.client import QuintetClient
from quintet_client.contract import rules
from quintet_client.inputs import Document

MAX_DOCUMENTS = rules(rag_pb2.AddDocumentsRequest, "documents").repeated.max_items
# Servers read 4 MiB by default; smaller steps also show progress and lose less when one fails.
MAX_BYTES = 1024 * 1024


def register(add: AddCommand) -> None:
    """Add the commands."""
    ask = add(
        "ask",
        run_ask,
        "[QUESTION]",
        "answer a question from documents, with sources",
        """  quintet ask "Who painted the Night Watch?"
  quintet ask --collection handbook --top-k 5 "How many days of leave do I have?\"""",
    )
    ask.add_argument("text", metavar="QUESTION", nargs="?", help="none: standard input")
    retrieve = add(
        "retrieve",
        run_retrieve,
        "[QUERY]",
        "find the passages of documents that fit a query",
        """  quintet retrieve "painters of the Dutch Golden Age"
  quintet retrieve --collection handbook --top-k 20 --json "parental leave\"""",
    )
    retrieve.add_argument("text", metavar="QUERY", nargs="?", help="none: standard input")
    for parser, passages in ((ask, 3), (retrieve, 5)):
        parser.add_argument("--collection", metavar="NAME", help="documents to search; default: wikipedia")
        parser.add_argument("--top-k", metavar="N", type=count, help=f"passages; default: {passages}")
    adding = add(
        "add",
        run_add,
        "COLLECTION FILE|FOLDER ...",
        "add text and Markdown files to a collection, or replace them",
        """  quintet add handbook docs/ README.md

A document's id is its path from the current folder, or, if it lies elsewhere, from the folder above the one
that is named. Folders are searched for .txt, .text, .md and .markdown; hidden files are left out.""",
    )
    adding.add_argument("collection", metavar="COLLECTION", help="made if it is new")
    adding.add_argument("paths", metavar="FILE|FOLDER", nargs="+", help="what to add")


def run_ask(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Stream the answer, then list what it was made from."""
    question = text_or_stdin(args.text, "the question")
    events = client.stream_ask(question, collection=args.collection, top_k=args.top_k)
    if args.json:
        for event in events:
            out.json(event)
        return OK
    answer = show(out, events)
    if answer.citations:
        out.line()
        for number, citation in enumerate(answer.citations, 1):
            _tell_passage(out, number, citation, citation.snippet, lines=2)
        out.line()
    if answer.done.finish_reason == common_pb2.FINISH_REASON_NO_PASSAGES:
        out.warn("no passage fits the question, so the language model was not asked")
    elif isinstance(answer.done, rag_pb2.AskDone) and not answer.done.grounded:
        out.warn("warning: the answer is not borne out by the passages")
    tell_end(out, answer.done)
    return OK


def run_retrieve(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """List the passages, best first."""
    query = text_or_stdin(args.text, "the query")
    response = client.retrieve(query, collection=args.collection, top_k=args.top_k)
    for number, passage in enumerate(response.passages, 1):
        if args.json:
            out.json(passage)
        else:
            _tell_passage(out, number, passage, passage.text)
    index = response.index
    out.note(f"{len(response.passages)} passages of {index.collection}, generation {index.generation}")
    return OK


def _tell_passage(
    out: Terminal, number: int, passage: rag_pb2.Citation | rag_pb2.Passage, text: str, lines: int | None = None
) -> None:
    source = passage.uri or passage.document_id
    title = passage.title or source
    out.line(f"[{number}] {title}  {passage.score:.2f}" + (f"  {source}" if source != title else ""), "bold")
    out.paragraph(text, indent="    ", lines=lines)


def run_add(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Add what can be added, in batches, and say what was left out and why."""
    skipped: list[Skipped] = []
    totals = dict.fromkeys(("added_count", "updated_count", "unchanged_count"), 0)
    index = common_pb2.IndexRef(collection=args.collection)
    for batch in _batches(_kept(args.paths, skipped, out)):
        if any(totals.values()):
            out.note(f"{sum(totals.values())} documents so far")
        with named("documents", [document["id"] for document in batch]):
            response = client.add_documents(args.collection, batch)
        index = response.index
        for name in totals:
            totals[name] += getattr(response, name)
    if args.json:
        out.json({**totals, "skipped": [each._asdict() for each in skipped], "index": as_dict(index)})
    elif any(totals.values()):
        done = ", ".join(f"{number} {name.removesuffix('_count')}" for name, number in totals.items() if number)
        left = f", {len(skipped)} skipped" if skipped else ""
        out.line(f"{index.collection}: {done}{left}; generation {index.generation}")
    else:
        out.warn("nothing was added: there is no .txt, .text, .md or .markdown file that can be used")
    return OK if any(totals.values()) else FAILED


def _kept(paths: Sequence[str], skipped: list[Skipped], out: Terminal) -> Iterator[Document]:
    """The documents; what is left out is told at once and put into `skipped`."""
    for found in collect(paths):
        if isinstance(found, Skipped):
            skipped.append(found)
            out.warn(f"skipped {found.path}: {found.reason}")
        else:
            yield found


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """As many documents as one request may carry."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        grown = size + len(document["text"].encode())
        if batch and (len(batch) == MAX_DOCUMENTS or grown > MAX_BYTES):
            yield batch
            batch, grown = [], grown - size
        batch.append(document)
        size = grown
    if batch:
        yield batch
