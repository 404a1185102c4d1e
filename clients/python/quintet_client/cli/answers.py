"""Generated text, written as it arrives."""

from collections.abc import Iterable
from typing import NamedTuple

from quintet.v1 import chat_pb2, common_pb2, rag_pb2

from quintet_client.cli.terminal import Terminal, clean
from quintet_client.cli.usage import money

Event = chat_pb2.StreamChatResponse | rag_pb2.StreamAskResponse
Done = chat_pb2.ChatDone | rag_pb2.AskDone


class Answer(NamedTuple):
    """The content of a stream."""

    text: str
    citations: list[rag_pb2.Citation]
    done: Done


def show(out: Terminal, events: Iterable[Event]) -> Answer:
    """Write the deltas as they arrive; return the whole answer."""
    text = ""
    citations: list[rag_pb2.Citation] = []
    done: Done = chat_pb2.ChatDone()
    try:
        for event in events:
            if event.HasField("delta"):
                text += event.delta.text
                out.write(clean(event.delta.text))
            elif event.HasField("done"):
                done = event.done
            elif isinstance(event, rag_pb2.StreamAskResponse):
                citations = list(event.sources.citations)
    finally:
        if text and not text.endswith("\n"):
            out.write("\n")
    return Answer(text, citations, done)


def write_summary(out: Terminal, done: Done) -> None:
    """Write whether the answer is complete, which model made it, and its tokens and cost."""
    if done.finish_reason == common_pb2.FINISH_REASON_LENGTH:
        out.warn("warning: the answer was cut off at the token limit")
    if done.finish_reason == common_pb2.FINISH_REASON_CONTENT_FILTER:
        out.warn("warning: the provider withheld the answer")
    usage = done.usage
    parts = [f"{done.model.name} {done.model.version}".strip()]
    if usage.total_tokens:
        parts.append(f"{usage.prompt_tokens} + {usage.completion_tokens} tokens")
    if usage.cost_micros:
        parts.append(money(usage.cost_micros, usage.currency))
    out.note(" · ".join(part for part in parts if part))
