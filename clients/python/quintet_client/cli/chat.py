"""`quintet chat`: one answer, or a conversation on a terminal."""

import argparse
import contextlib
import sys

from quintet_client.cli.answers import show, write_summary
from quintet_client.cli.failures import OK, report
from quintet_client.cli.options import AddCommand, count, text_or_stdin
from quintet_client.cli.terminal import Terminal
from quintet_client.client import QuintetClient
from quintet_client.errors import QuintetError
from quintet_client.inputs import ChatOptions, Message


def register(add: AddCommand) -> None:
    parser = add(
        "chat",
        run,
        "[QUESTION]",
        "talk to the language model",
        """  quintet chat "Write a haiku about gRPC"
  quintet chat --system "Answer in French." --temperature 0 "Where is the station?"
  git diff | quintet chat --system "Review this change."
  quintet chat                            a conversation, until Ctrl-D""",
    )
    parser.add_argument("question", metavar="QUESTION", nargs="?", help="none: standard input, or a conversation")
    parser.add_argument("--system", metavar="TEXT", help="instructions to the model")
    parser.add_argument("--model", metavar="NAME", help="chat model; default: the server's")
    parser.add_argument("--temperature", metavar="T", type=float, help="0 most probable, 2 most varied")
    parser.add_argument("--max-tokens", metavar="N", type=count, help="longest answer; default: 512")
    parser.add_argument("--seed", metavar="N", type=int, help="makes answers reproducible")


def run(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Answer the question, or start a conversation."""
    options = ChatOptions(
        model=args.model, temperature=args.temperature, max_output_tokens=args.max_tokens, seed=args.seed
    )
    history: list[Message] = [{"role": "system", "content": args.system}] if args.system else []
    if args.question is None and sys.stdin.isatty() and out.is_tty and not out.as_json:
        return _converse(client, out, history, options)
    question = text_or_stdin(args.question, "the question")
    events = client.stream_chat([*history, {"role": "user", "content": question}], **options)
    if out.as_json:
        for event in events:
            out.json(event)
    else:
        write_summary(out, show(out, events).done)
    return OK


def _converse(client: QuintetClient, out: Terminal, start: list[Message], options: ChatOptions) -> int:
    with contextlib.suppress(ImportError):  # line editing for input(); not on every platform
        import readline  # noqa: F401
    out.note("Ctrl-C stops an answer, /new starts a new conversation, Ctrl-D ends it.")
    history = list(start)
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            out.line()
            return OK
        if question == "/new":
            history = list(start)
        elif question:
            asked: list[Message] = [*history, {"role": "user", "content": question}]
            try:
                answer = show(out, client.stream_chat(asked, **options))
                history = [*asked, {"role": "assistant", "content": answer.text}]
                write_summary(out, answer.done)
            except KeyboardInterrupt:
                out.note("stopped; the question is not part of the conversation")
            except QuintetError as error:
                report(error, client.address)
