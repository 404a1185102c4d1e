"""Classification, pricing, chat, answers from documents, text analysis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Unpack

from quintet.v1 import analysis_pb2, chat_pb2, classification_pb2, embedding_pb2, pricing_pb2, rag_pb2

from quintet_client import inputs
from quintet_client.calls import GENERATE, Call, StreamCall, Stubs
from quintet_client.filters import Where, filters
from quintet_client.inputs import ChatOptions, House, Message, Task
from quintet_client.messages import make


def classify(
    stubs: Stubs,
    texts: str | Iterable[str],
    *,
    model: str | None = None,
    top_k: int | None = None,
    timeout: float | None = None,
) -> Call[classification_pb2.ClassifyResponse]:
    """Classify up to 64 texts. Each result has all labels, or the `top_k` most probable ones."""
    request = make(classification_pb2.ClassifyRequest, texts=inputs.as_list(texts), model=model, top_k=top_k)
    return Call(stubs.classification.Classify, request, timeout)


def embed(
    stubs: Stubs, texts: str | Iterable[str], *, model: str | None = None, timeout: float | None = None
) -> Call[embedding_pb2.EmbedResponse]:
    """Turn up to 64 texts into vectors of length 1, whose cosines tell how similar the texts' meanings are."""
    request = make(embedding_pb2.EmbedRequest, texts=inputs.as_list(texts), model=model)
    return Call(stubs.embedding.Embed, request, timeout)


def predict_price(
    stubs: Stubs, houses: Iterable[House | Mapping[str, object]], *, timeout: float | None = None
) -> Call[pricing_pb2.PredictPriceResponse]:
    """Estimate the prices of up to 256 houses, each with its 90 % interval."""
    request = make(pricing_pb2.PredictPriceRequest, houses=inputs.houses(houses))
    return Call(stubs.pricing.PredictPrice, request, timeout)


def chat(
    stubs: Stubs, messages: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[ChatOptions]
) -> Call[chat_pb2.ChatResponse]:
    """Ask the language model. `messages` is the conversation so far, oldest message first, or one question."""
    request = inputs.chat(chat_pb2.ChatRequest, messages, options)
    return Call(stubs.chat.Chat, request, timeout, GENERATE)


def stream_chat(
    stubs: Stubs, messages: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[ChatOptions]
) -> StreamCall[chat_pb2.StreamChatResponse]:
    """Stream the answer of `chat`: deltas, then one done. Closing the iterator stops the generation."""
    request = inputs.chat(chat_pb2.StreamChatRequest, messages, options)
    return StreamCall(stubs.chat.StreamChat, request, timeout, GENERATE)


def ask(
    stubs: Stubs,
    question: str,
    *,
    collection: str | None = None,
    top_k: int | None = None,
    where: Where | None = None,
    min_generation: int | None = None,
    timeout: float | None = None,
) -> Call[rag_pb2.AskResponse]:
    """Answer a question from the `top_k` best passages of a collection, with citations.

    `where` has conditions on metadata (`quintet_client.filters`). The server waits until the collection has reached
    `min_generation`, for instance the generation that a write returned.
    """
    request = make(
        rag_pb2.AskRequest,
        question=question,
        collection=collection,
        top_k=top_k,
        filters=filters(where),
        min_generation=min_generation,
    )
    return Call(stubs.rag.Ask, request, timeout, GENERATE)


def stream_ask(
    stubs: Stubs,
    question: str,
    *,
    collection: str | None = None,
    top_k: int | None = None,
    where: Where | None = None,
    min_generation: int | None = None,
    timeout: float | None = None,
) -> StreamCall[rag_pb2.StreamAskResponse]:
    """Stream the answer of `ask`: sources, deltas, then one done. Closing the iterator stops the generation."""
    request = make(
        rag_pb2.StreamAskRequest,
        question=question,
        collection=collection,
        top_k=top_k,
        filters=filters(where),
        min_generation=min_generation,
    )
    return StreamCall(stubs.rag.StreamAsk, request, timeout, GENERATE)


def retrieve(
    stubs: Stubs,
    query: str,
    *,
    collection: str | None = None,
    top_k: int | None = None,
    where: Where | None = None,
    min_generation: int | None = None,
    timeout: float | None = None,
) -> Call[rag_pb2.RetrieveResponse]:
    """Find the `top_k` best passages of a collection; no language model is used."""
    request = make(
        rag_pb2.RetrieveRequest,
        query=query,
        collection=collection,
        top_k=top_k,
        filters=filters(where),
        min_generation=min_generation,
    )
    return Call(stubs.rag.Retrieve, request, timeout)


def analyze(
    stubs: Stubs, text: str, tasks: Iterable[Task] | None = None, *, timeout: float | None = None
) -> Call[analysis_pb2.AnalyzeResponse]:
    """Analyse a text by some tasks, by default all. A task that fails is listed in `failures`."""
    request = make(analysis_pb2.AnalyzeRequest, text=text, tasks=inputs.tasks(tasks))
    return Call(stubs.analysis.Analyze, request, timeout)


def stream_analyze(
    stubs: Stubs, text: str, tasks: Iterable[Task] | None = None, *, timeout: float | None = None
) -> StreamCall[analysis_pb2.StreamAnalyzeResponse]:
    """Stream the results of `analyze`, each as soon as it is ready, then one done."""
    request = make(analysis_pb2.StreamAnalyzeRequest, text=text, tasks=inputs.tasks(tasks))
    return StreamCall(stubs.analysis.StreamAnalyze, request, timeout)
