"""`quintet ask` and `quintet retrieve`"""

import argparse

from quintet.v1 import common_pb2, rag_pb2

from quintet_client.cli.answers import show, write_summary
from quintet_client.cli.failures import OK
from quintet_client.cli.options import AddCommand, condition, count, text_or_stdin
from quintet_client.cli.terminal import Terminal
from quintet_client.client import QuintetClient


def register(add: AddCommand) -> None:
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
        "find the passages of documents that match a query",
        """  quintet retrieve "painters of the Dutch Golden Age"
  quintet retrieve --collection handbook --top-k 20 --json "parental leave"
  quintet retrieve --where topic=People,Arts "who painted the ceiling\"""",
    )
    retrieve.add_argument("text", metavar="QUERY", nargs="?", help="none: standard input")
    for parser, passages in ((ask, 3), (retrieve, 5)):
        parser.add_argument("--collection", metavar="NAME", help="documents to search; default: wikipedia")
        parser.add_argument(
            "--where",
            metavar="KEY=VALUE",
            type=condition,
            action="append",
            default=[],
            help="condition on metadata, may be repeated; kind=faq, lang=en,fr, year=1990..2000, date=2024-01..",
        )
        parser.add_argument("--top-k", metavar="N", type=count, help=f"passages; default: {passages}")


def run_ask(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Stream the answer, then list its sources."""
    question = text_or_stdin(args.text, "the question")
    events = client.stream_ask(question, collection=args.collection, top_k=args.top_k, where=dict(args.where))
    if out.as_json:
        for event in events:
            out.json(event)
        return OK
    answer = show(out, events)
    if answer.citations:
        out.line()
        for number, citation in enumerate(answer.citations, 1):
            _write_passage(out, number, citation, citation.snippet, lines=2)
        out.line()
    if answer.done.finish_reason == common_pb2.FINISH_REASON_NO_PASSAGES:
        out.warn("no passage fits the question; the language model was not called")
    elif isinstance(answer.done, rag_pb2.AskDone) and answer.done.abstained:
        out.warn("the model did not find the answer in the passages")
    elif isinstance(answer.done, rag_pb2.AskDone) and not answer.done.grounded:
        out.warn("warning: the passages do not support the answer")
    write_summary(out, answer.done)
    return OK


def run_retrieve(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """List the passages, best first."""
    query = text_or_stdin(args.text, "the query")
    response = client.retrieve(query, collection=args.collection, top_k=args.top_k, where=dict(args.where))
    for number, passage in enumerate(response.passages, 1):
        if out.as_json:
            out.json(passage)
        else:
            _write_passage(out, number, passage, passage.text)
    index = response.index
    out.note(f"{len(response.passages)} passages of {index.collection}, generation {index.generation}")
    return OK


def _write_passage(
    out: Terminal, number: int, passage: rag_pb2.Citation | rag_pb2.Passage, text: str, lines: int | None = None
) -> None:
    source = passage.uri or passage.document_id
    title = passage.title or source
    out.line(f"[{number}] {title}  {passage.score:.2f}" + (f"  {source}" if source != title else ""), "bold")
    out.paragraph(text, indent="    ", lines=lines)
