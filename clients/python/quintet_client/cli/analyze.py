"""`quintet analyze`"""

import argparse
from collections.abc import Iterable

from quintet.v1 import analysis_pb2, common_pb2

from quintet_client.cli.classify import MOSTLY
from quintet_client.cli.failures import FAILED, OK
from quintet_client.cli.options import AddCommand, text_or_stdin
from quintet_client.cli.terminal import Cell, Terminal
from quintet_client.client import QuintetClient
from quintet_client.contract import enum_name
from quintet_client.inputs import TASKS

# Syntax prints a line a word, so it must be asked for.
DEFAULT_TASKS = [task for task in TASKS if task != "syntax"]


def register(add: AddCommand) -> None:
    parser = add(
        "analyze",
        run,
        "[TEXT]",
        "find entities, sentiment, topics, language and syntax of a text",
        """  quintet analyze "Ada Lovelace was born in London on 10 December 1815."
  quintet analyze --tasks entities,language < letter.txt""",
    )
    parser.add_argument("text", metavar="TEXT", nargs="?", help="none: standard input")
    parser.add_argument(
        "--tasks",
        metavar="A,B",
        type=lambda value: value.split(","),
        default=DEFAULT_TASKS,
        help=f"some of {', '.join(TASKS)}; default: all but syntax",
    )


def run(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Show a section for each task; failed tasks are reported on standard error."""
    text = text_or_stdin(args.text, "the text")
    response = client.analyze(text, args.tasks)
    if out.as_json:
        out.json(response)
    else:
        _write(out, text, response)
    for name, result in (("sentiment", response.sentiment), ("topics", response.topics)):
        if result.unknown_share >= MOSTLY:
            out.warn(f"warning: the text is mostly unknown to the model of {name}; its labels mean little")
    for failure in response.failures:
        out.warn(f"{enum_name(failure, 'task')} failed: {failure.message}")
    return FAILED if response.failures else OK


def _write(out: Terminal, text: str, response: analysis_pb2.AnalyzeResponse) -> None:
    for name, result in (
        ("Language", response.language),
        ("Sentiment", response.sentiment),
        ("Topics", response.topics),
    ):
        if result.labels:
            _section(out, name)
            out.paragraph(_labels(result.labels), indent="  ")
    if response.HasField("entities"):
        _section(out, "Entities")
        out.paragraph(_marked(text, response.entities.entities), indent="  ")
    if phrases := response.key_phrases.key_phrases:
        _section(out, "Key phrases")
        table = [(f"{each.score:.2f}", str(each.count), each.text) for each in phrases]
        out.table(("SCORE", "COUNT", "PHRASE"), table, right="SCORE COUNT", indent="  ")
    if sentences := response.sentences.sentences:
        _section(out, "Sentences")
        for number, sentence in enumerate(sentences, 1):
            out.paragraph(f"{number}. {sentence.text}", indent="  ")
    if tokens := response.syntax.tokens:
        _section(out, "Syntax")
        header = ("NR", "TOKEN", "LEMMA", "POS", "TAG", "RELATION", "HEAD")
        rows = (_token(number, token, tokens[token.head]) for number, token in enumerate(tokens, 1))
        out.table(header, rows, right="NR", indent="  ")


def _section(out: Terminal, name: str) -> None:
    out.line(name, "cyan")


def _labels(labels: Iterable[common_pb2.Label]) -> str:
    """The labels of at least 1 %, most probable first."""
    shown = [f"{each.label} {each.score:.2f}" for index, each in enumerate(labels) if index == 0 or each.score >= 0.01]
    return ", ".join(shown)


def _marked(text: str, entities: Iterable[analysis_pb2.Entity]) -> str:
    """The text with every entity in brackets, followed by its type."""
    parts, end = [], 0
    for entity in entities:
        parts += [text[end : entity.start], f"[{entity.text} {entity.type}]"]
        end = entity.end
    return "".join([*parts, text[end:]])


def _token(number: int, token: analysis_pb2.Token, head: analysis_pb2.Token) -> list[Cell]:
    of: Cell = ("root", "dim") if head == token else head.text
    return [str(number), (token.text, "bold"), token.lemma, token.pos, token.tag, token.dependency, of]
