"""`quintet collections` and `quintet reindex`"""

import argparse
import sys
import time
from collections.abc import Iterator
from datetime import UTC

from quintet.v1 import rag_pb2

from quintet_client.cli.failures import OK, UsageError
from quintet_client.cli.options import AddCommand
from quintet_client.cli.progress import progress_bar
from quintet_client.cli.terminal import Cell, Terminal
from quintet_client.client import QuintetClient
from quintet_client.contract import enum_name
from quintet_client.errors import Unreachable

_STYLES = {"ready": "green", "failed": "red"}
_REJOINS = 5  # in a row without an event
_REJOIN_SECONDS = 1.0
_PAGE = 1000  # documents; the contract's maximum


def register(add: AddCommand) -> None:
    add(
        "collections",
        run_list,
        "[ACTION]",
        "list the collections of documents, or manage one",
        """  quintet collections
  quintet collections show handbook
  quintet collections rollback handbook 12   serve the content of generation 12 again""",
        has_actions=True,
    )
    add("collections list", run_list, "", "list the collections")
    for action, run, summary in (
        ("show", run_show, "show a collection's size, embedder and index"),
        ("documents", run_documents, "list a collection's documents"),
        ("generations", run_generations, "list the generations that a collection can be rolled back to"),
        ("rollback", run_rollback, "serve the content of a kept generation again"),
        ("compact", run_compact, "fold the log of writes into files now"),
        ("create", run_create, "create an empty collection"),
        ("delete", run_delete, "delete a collection; this cannot be undone"),
    ):
        arguments = "COLLECTION GENERATION" if action == "rollback" else "COLLECTION"
        parser = add(f"collections {action}", run, arguments, summary)
        parser.add_argument("collection", metavar="COLLECTION", help="its name")
        if action == "rollback":
            parser.add_argument("generation", metavar="GENERATION", type=int, help="see collections generations")
        if action == "delete":
            parser.add_argument("--yes", action="store_true", help="delete without asking")
    reindex = add(
        "reindex",
        run_reindex,
        "COLLECTION",
        "embed all documents of a collection again, for instance after a change of the embedder",
    )
    reindex.add_argument("collection", metavar="COLLECTION", help="it answers as before until the end")


def run_list(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    found, storage = _collections(client)
    has_owners = any(each.owner for each in found)

    def row(each: rag_pb2.Collection) -> list[Cell]:
        cells: list[Cell] = [
            each.index.collection,
            _state(each),
            f"{each.document_count:,}",
            str(each.index.generation),
        ]
        return [*cells, each.owner or "-"] if has_owners else cells

    header = ("NAME", "STATE", "DOCUMENTS", "GENERATION", *(["OWNER"] if has_owners else []))
    out.records(header, found, row, right="DOCUMENTS GENERATION")
    if not out.as_json:
        for each in found:
            if each.state_message:
                out.line(f"{each.index.collection}: {each.state_message}", "yellow")
        if quotas := _quotas(storage):
            out.line(f"stored: {quotas}")
    return OK


def _collections(client: QuintetClient) -> tuple[list[rag_pb2.Collection], rag_pb2.Storage]:
    """The collections, and what the tenant stores."""
    found: list[rag_pb2.Collection] = []
    token: str | None = None
    while token != "":
        page = client.list_collections(page_token=token)
        found += page.collections
        token = page.next_page_token
    return found, page.storage


def _quotas(storage: rag_pb2.Storage) -> str:
    """What is stored of each quota; empty if there are none."""
    shown = []
    if storage.HasField("max_collection_count"):
        shown.append(f"{storage.collection_count:,} of {storage.max_collection_count:,} collections")
    if storage.HasField("max_document_count"):
        shown.append(f"{storage.document_count:,} of {storage.max_document_count:,} documents")
    if storage.HasField("max_size_bytes"):
        shown.append(f"{storage.size_bytes / 1e6:,.1f} of {storage.max_size_bytes / 1e6:,.1f} MB")
    return ", ".join(shown)


def run_show(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    index = client.get_index(args.collection)
    if out.as_json:
        out.json(index)
        return OK
    state, style = _state(index)
    exact = index.index_type == "flat"
    out.line(args.collection, "bold")
    facts: dict[str, Cell] = {
        "state": (f"{state}: {index.state_message}".removesuffix(": "), style),
        "generation": f"{index.index.generation}, writes in the log: {index.log_count:,}",
        "documents": f"{index.document_count:,} in {index.passage_count:,} passages",
        "size": f"{index.size_bytes / 1e6:.1f} MB",
        "written": f"{index.update_time.ToDatetime(UTC):%Y-%m-%d %H:%M} UTC",
        "embedder": f"{index.model.name} {index.model.version}, {index.dimensions} dimensions",
        "search": f"{index.index_type}, {'exact' if exact else f'recall of the first 10 {index.recall_at_10:.3f}'}",
    }
    out.facts(facts, indent="  ")
    return OK


def run_documents(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Write a table page by page, so that a large collection is listed at once."""
    token: str | None = None
    is_first = True
    while token != "":
        page = client.list_documents(args.collection, page_size=_PAGE, page_token=token)
        if out.as_json:
            for document in page.documents:
                out.json(document)
        else:
            rows = [(each.id, each.title, f"{each.text_length:,}") for each in page.documents]
            out.table(("ID", "TITLE", "CHARACTERS"), rows, right="CHARACTERS", with_header=is_first)
        token, is_first = page.next_page_token, False
    return OK


def run_generations(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    response = client.list_generations(args.collection)
    out.records(
        ("GENERATION", "MADE", "DOCUMENTS", "PASSAGES", "SIZE", "BY"),
        response.generations,
        lambda each: (
            str(each.generation),
            f"{each.create_time.ToDatetime(UTC):%Y-%m-%d %H:%M} UTC",
            f"{each.document_count:,}",
            f"{each.passage_count:,}",
            f"{each.size_bytes / 1e6:.1f} MB",
            each.origin,
        ),
        right="GENERATION DOCUMENTS PASSAGES SIZE",
    )
    out.note(f"served: generation {response.index.generation}")
    return OK


def run_rollback(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    response = client.rollback(args.collection, args.generation)
    name, now = args.collection, response.index.generation
    out.result(response, f"{name}: generation {now} has the documents of generation {args.generation}")
    return OK


def run_compact(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    response = client.compact(args.collection)
    size = f"{response.size_bytes / 1e6:.1f} MB"
    out.result(response, f"{args.collection}: generation {response.index.generation} is in files, {size}")
    return OK


def run_create(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    response = client.create_collection(args.collection)
    out.result(response, f"{args.collection}: created, empty, for {response.model.name} {response.model.version}")
    return OK


def run_delete(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Delete a collection, after a question on a terminal."""
    if not args.yes:
        if not (sys.stdin.isatty() and out.is_tty) or out.as_json:
            raise UsageError(f"deleting {args.collection} cannot be undone; confirm with --yes")
        count = client.get_index(args.collection).document_count
        if input(f"Delete {args.collection} with its {count:,} documents for good? [y/N] ").strip().lower() != "y":
            raise UsageError("nothing was deleted")
    out.result(client.delete_collection(args.collection), f"{args.collection}: deleted")
    return OK


def _state(of: rag_pb2.Collection | rag_pb2.GetIndexResponse) -> tuple[str, str]:
    name = enum_name(of, "state")
    return name.replace("_", " "), _STYLES.get(name, "yellow")


def run_reindex(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Show a progress bar on a terminal; with --json, write every event."""
    with progress_bar(hidden=out.as_json) as show:
        for event in _reindexing(client, args.collection):
            if out.as_json:
                out.json(event)
            elif event.WhichOneof("event") == "progress":
                done, total = event.progress.done, event.progress.total
                show(done, total, f"{done:,} of {total:,} passages")
    if not out.as_json:
        index, model = event.done.index, event.done.model
        out.line(f"{args.collection}: generation {index.generation}, embedded by {model.name} {model.version}")
    return OK


def _reindexing(client: QuintetClient, collection: str) -> Iterator[rag_pb2.ReindexResponse]:
    """The events of reindexing, to its end: where the connection breaks, the work goes on and is joined again."""
    before = client.get_index(collection).index
    broken = 0
    while True:
        try:
            for event in client.reindex(collection):
                yield event
                broken = 0
            return
        except Unreachable:
            broken += 1
            if broken > _REJOINS:
                raise
        time.sleep(_REJOIN_SECONDS)
        newest = client.list_generations(collection).generations[0]
        if newest.origin == "reindex" and newest.generation > before.generation:  # it ended meanwhile
            before.generation = newest.generation
            yield rag_pb2.ReindexResponse(done=rag_pb2.ReindexDone(index=before, model=newest.model))
            return
