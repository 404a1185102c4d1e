"""`quintet classify`"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from quintet.v1 import classification_pb2

from quintet_client.cli.failures import OK, UsageError, named
from quintet_client.cli.options import AddCommand, batches, count, decode
from quintet_client.cli.terminal import Cell, Terminal, as_dict
from quintet_client.client import QuintetClient
from quintet_client.contract import rules

MOSTLY = 0.5  # of a text's tokens
BATCH = rules(classification_pb2.ClassifyRequest, "texts").repeated.max_items


def register(add: AddCommand) -> None:
    parser = add(
        "classify",
        run,
        "[TEXT ...]",
        "classify texts, for instance as negative, neutral or positive",
        """  quintet classify "I love it" "meh"
  quintet classify --model topics --top-k 3 "The striker scored twice"
  quintet classify < reviews.txt          one text a line, blank lines skipped""",
    )
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="texts; none: the lines of standard input")
    parser.add_argument("--model", metavar="NAME", help="classifier; default: sentiment")
    parser.add_argument("--top-k", metavar="N", type=count, default=1, help="labels for each text; default: 1")


def run(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Classify in batches, so that results of a long input appear while it is read."""
    named_texts = ((f"text {n}", text) for n, text in enumerate(args.texts, 1)) if args.texts else _lines()
    truncated = unknown = 0
    for number, batch in enumerate(batches(named_texts, BATCH)):
        names, texts = zip(*batch, strict=True)
        with named("texts", names):
            response = client.classify(texts, model=args.model, top_k=args.top_k)
        truncated += sum(result.truncated for result in response.results)
        unknown += sum(result.unknown_share >= MOSTLY for result in response.results)
        if out.as_json:
            for text, result in zip(texts, response.results, strict=True):
                out.json({"text": text, **as_dict(result), "model": as_dict(response.model)})
        else:
            rows = _rows(texts, response)
            out.table(("SCORE", "LABEL", "TEXT"), rows, right="SCORE", with_header=number == 0)
    if truncated:
        out.warn(f"warning: {truncated} texts are longer than the model reads; the ends of {truncated} were ignored")
    if unknown:
        out.warn(f"warning: {unknown} texts are mostly unknown to the model; their labels mean little")
    return OK


def _rows(texts: tuple[str, ...], response: classification_pb2.ClassifyResponse) -> Iterator[Sequence[Cell]]:
    for text, result in zip(texts, response.results, strict=True):
        for index, label in enumerate(result.labels):
            yield f"{label.score:.3f}", (label.label, "dim" if index else "bold"), "" if index else text


def _lines() -> Iterator[tuple[str, str]]:
    if sys.stdin.isatty():
        raise UsageError(
            'nothing to classify: give texts as arguments, or pipe lines in (see "quintet classify --help")'
        )
    for number, line in enumerate(sys.stdin.buffer, 1):
        if text := decode(line, f"line {number}").strip():
            yield f"line {number}", text
