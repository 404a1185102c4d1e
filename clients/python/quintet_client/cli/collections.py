"""`quintet collections` and `quintet reindex`"""

import argparse
import sys
from collections.abc import Callable, Iterator
from datetime import UTC

from quintet.v1 import rag_pb2

from quintet_client.cli.bar import Bar
from quintet_client.cli.failures import OK, UsageError
from quintet_client.cli.options import AddCommand
from quintet_client.cli.terminal import Style, Styled, Terminal
from quintet_client.client import QuintetClient
from quintet_client.contract import enum_name

_STYLES: dict[str, Style] = {"ready": "green", "failed": "red"}
_PAGE = 1000  # documents; the most that the contract allows


def register(add: AddCommand) -> None:
    """Add the commands."""
    collections = add(
        "collections",
        run_collections,
        "[ACTION] [COLLECTION] [GENERATION]",
        "list the collections of documents, or do something with one",
        """  quintet collections                        list them
  quintet collections show handbook          its size, embedder and index
  quintet collections documents handbook     its documents
  quintet collections generations handbook   the states that can be gone back to
  quintet collections rollback handbook 12   serve generation 12 again
  quintet collections compact handbook       fold the log of writes into files now
  quintet collections create handbook        make an empty one
  quintet collections delete handbook --yes  remove it for good""",
    )
    actions = [*_ACTIONS]
    collections.add_argument("action", metavar="ACTION", nargs="?", default="list", choices=actions, help="see below")
    collections.add_argument("collection", metavar="COLLECTION", nargs="?", help="for all actions but list")
    collections.add_argument("generation", metavar="GENERATION", nargs="?", type=int, help="for rollback")
    collections.add_argument("--yes", action="store_true", help="delete without asking")
    reindex = add(
        "reindex",
        run_reindex,
        "COLLECTION",
        "embed all documents of a collection again, for instance after a change of the embedder",
        "  quintet reindex handbook",
    )
    reindex.add_argument("collection", metavar="COLLECTION", help="it answers as before until the end")


def run_collections(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """One action."""
    if (args.collection is None) != (args.action == "list"):
        missing = "its name is missing" if args.collection is None else "list takes no name"
        raise UsageError(f"quintet collections {args.action}: {missing}")
    if (args.generation is None) == (args.action == "rollback"):
        raise UsageError(
            "rollback needs a generation, nothing else does; 'quintet collections generations NAME' lists them"
        )
    _ACTIONS[args.action](args, client, out)
    return OK


def _list(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> None:
    found = list(_collections(client))
    if out.as_json:
        for each in found:
            out.json(each)
        return
    rows = [
        (each.index.collection, _state(each), f"{each.document_count:,}", str(each.index.generation)) for each in found
    ]
    out.table(("NAME", "STATE", "DOCUMENTS", "GENERATION"), rows, right="DOCUMENTS GENERATION")
    for each in found:
        if each.state_message:
            out.line(f"{each.index.collection}: {each.state_message}", "yellow")


def _collections(client: QuintetClient) -> Iterator[rag_pb2.Collection]:
    token: str | None = None
    while token != "":
        page = client.list_collections(page_token=token)
        yield from page.collections
        token = page.next_page_token


def _show(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> None:
    index = client.get_index(args.collection)
    if out.as_json:
        out.json(index)
        return
    exact = index.index_type == "flat"
    facts = {
        "state": _state(index).text + (f": {index.state_message}" if index.state_message else ""),
        "generation": f"{index.index.generation}, writes in the log: {index.log_count:,}",
        "documents": f"{index.document_count:,} in {index.passage_count:,} passages",
        "size": f"{index.size_bytes / 1e6:.1f} MB",
        "written": f"{index.update_time.ToDatetime(UTC):%Y-%m-%d %H:%M} UTC",
        "embedder": f"{index.model.name} {index.model.version}, {index.dimensions} dimensions",
        "search": f"{index.index_type}, {'exact' if exact else f'recall of the first 10 {index.recall_at_10:.3f}'}",
    }
    out.line(args.collection, "bold")
    for name, value in facts.items():
        out.line(f"  {name:10} {value}", _state(index).style if name == "state" else None)


def _documents(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> None:
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


def _generations(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> None:
    response = client.list_generations(args.collection)
    if out.as_json:
        for each in response.generations:
            out.json(each)
        return
    rows = [
        (
            str(each.generation),
            f"{each.create_time.ToDatetime(UTC):%Y-%m-%d %H:%M} UTC",
            f"{each.document_count:,}",
            f"{each.passage_count:,}",
            f"{each.size_bytes / 1e6:.1f} MB",
            each.origin,
        )
        for each in response.generations
    ]
    header = ("GENERATION", "MADE", "DOCUMENTS", "PASSAGES", "SIZE", "BY")
    out.table(header, rows, right="GENERATION DOCUMENTS PASSAGES SIZE")
    out.note(f"served: generation {response.index.generation}")


def _rollback(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> None:
    response = client.rollback(args.collection, args.generation)
    if out.as_json:
        out.json(response)
    else:
        generation = response.index.generation
        out.line(f"{args.collection}: generation {generation} has the documents of generation {args.generation}")


def _compact(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> None:
    response = client.compact(args.collection)
    if out.as_json:
        out.json(response)
    else:
        size = f"{response.size_bytes / 1e6:.1f} MB"
        out.line(f"{args.collection}: generation {response.index.generation} is in files, {size}")


def _create(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> None:
    response = client.create_collection(args.collection)
    if out.as_json:
        out.json(response)
    else:
        out.line(f"{args.collection}: made, empty, for {response.model.name} {response.model.version}")


def _delete(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> None:
    if not args.yes:
        if not (sys.stdin.isatty() and out.is_tty) or out.as_json:
            raise UsageError(f"deleting {args.collection} cannot be undone; say so with --yes")
        count = client.get_index(args.collection).document_count
        if input(f"Delete {args.collection} with its {count:,} documents for good? [y/N] ").strip().lower() != "y":
            raise UsageError("nothing was deleted")
    response = client.delete_collection(args.collection)
    if out.as_json:
        out.json(response)
    else:
        out.line(f"{args.collection}: deleted")


_ACTIONS: dict[str, Callable[[argparse.Namespace, QuintetClient, Terminal], None]] = {
    "list": _list,
    "show": _show,
    "documents": _documents,
    "generations": _generations,
    "rollback": _rollback,
    "compact": _compact,
    "create": _create,
    "delete": _delete,
}


def _state(of: rag_pb2.Collection | rag_pb2.GetIndexResponse) -> Styled:
    name = enum_name(of, "state")
    return Styled(name.replace("_", " "), _STYLES.get(name, "yellow"))


def run_reindex(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """A bar on a terminal; with --json every event."""
    with Bar(1.0, hidden=out.as_json) as bar:
        for event in client.reindex(args.collection):
            if out.as_json:
                out.json(event)
            elif event.WhichOneof("event") == "progress":
                done, total = event.progress.done, event.progress.total
                bar.show(done / max(total, 1), f"{done:,} of {total:,} passages")
    if not out.as_json:
        model = event.done.model
        generation = event.done.index.generation
        out.line(f"{args.collection}: generation {generation}, embedded by {model.name} {model.version}")
    return OK
