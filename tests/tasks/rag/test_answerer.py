"""Answers from passages: what the model is given, when it is not asked, and what it says when it does not know."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from server.domain.chat import ChatModel, FinishReason, Message, TextDelta
from server.domain.errors import CollectionNotFound, UpstreamFailed
from server.domain.rag import AskDone, Document, Query, Retrieval
from server.domain.usage import Usage, UsageSource
from server.inference.scheduler import Scheduler
from server.models.artefact import open_artefact
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.tasks.chat.embedded import EmbeddedModel
from server.tasks.rag.abstention import TEXTS
from server.tasks.rag.answerer import MIN_SCORE, Answerer
from server.tasks.rag.engine import RagEngine
from tests.chatting import chatting, client_for
from tests.fakes import OpenAIServer, Reply, UnaccountedChatModel
from tests.tasks.rag.hashing import CAT, DOG, SUN, HashingEmbedder
from tests.waiting import until

QUESTION = "Where sleeps the cat?"


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer().running() as server:
        yield server


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[RagEngine]:
    scheduler = Scheduler(1, 16)
    found = RagEngine(tmp_path, HashingEmbedder(), scheduler)
    await found.ingester.add("notes", [CAT, DOG, SUN], deadline=soon())
    yield found
    scheduler.close()


@pytest.fixture
async def chat(upstream: OpenAIServer) -> AsyncIterator[ChatModel]:
    async with chatting(client_for(upstream), context_tokens=2048) as provider:
        yield UnaccountedChatModel(provider)


def soon() -> float:
    return time.monotonic() + 30.0


async def ask(
    answerer: Answerer, question: str, collection: str = "notes", top_k: int = 3
) -> tuple[Retrieval, str, AskDone]:
    """All events, in the only order that is allowed."""
    events = [event async for event in answerer.stream(Query(question, collection, top_k), deadline=soon())]
    sources, *deltas, done = events
    assert isinstance(sources, Retrieval)
    assert isinstance(done, AskDone)
    return sources, "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), done


async def test_the_model_reads_the_passages_and_then_the_question(
    engine: RagEngine, chat: ChatModel, upstream: OpenAIServer
) -> None:
    upstream.replies = [Reply(deltas=["The cat sleeps on the", " warm mat."])]
    sources, answer, done = await ask(Answerer(engine, chat), QUESTION)
    assert answer == "The cat sleeps on the warm mat."
    assert (done.grounded, done.abstained) == (True, False)
    assert done.index == sources.index
    assert (done.chat.finish_reason, done.chat.usage.prompt_tokens) == (FinishReason.STOP, 11)
    assert sources.passages[0].document_id == "cat"
    system, user = upstream.requests[0].body["messages"]
    assert system["role"] == "system"
    read = [passage.text for passage in sources.passages]
    assert all(text in user["content"] for text in read)
    assert user["content"].startswith("Passage 1 (Cat):\nThe cat sleeps")
    assert user["content"].endswith(f"\n\nQuestion: {QUESTION}")


async def test_no_model_is_asked_without_a_passage_that_is_near(
    engine: RagEngine, chat: ChatModel, upstream: OpenAIServer
) -> None:
    sources, answer, done = await ask(Answerer(engine, chat), "What costs quantum insurance?")
    assert upstream.requests == []
    assert (sources.passages, answer) == ((), TEXTS["en"])
    assert (done.chat.finish_reason, done.grounded, done.abstained) == (FinishReason.NO_PASSAGES, False, True)
    assert done.chat.usage == Usage(0, 0, UsageSource.ESTIMATED)
    assert done.chat.model == chat.description.identity


async def test_an_abstention_is_in_the_questions_language(
    engine: RagEngine, chat: ChatModel, upstream: OpenAIServer
) -> None:
    _, answer, done = await ask(Answerer(engine, chat), "量子保险多少钱？")
    assert (answer, done.abstained) == (TEXTS["zh-Hans"], True)
    upstream.replies = [Reply(deltas=["Leider weiß", " ich das nicht."])]
    _, answer, done = await ask(Answerer(engine, chat), "Wo schläft the cat?")
    assert (done.abstained, done.grounded) == (True, False)
    assert TEXTS["de"] in upstream.requests[0].body["messages"][0]["content"], "what the model is told to reply"


async def test_far_passages_are_not_read(engine: RagEngine, chat: ChatModel) -> None:
    sources, _, _ = await ask(Answerer(engine, chat), "plasma star sun hot")
    assert [passage.document_id for passage in sources.passages] == ["sun"]
    assert all(passage.score >= MIN_SCORE for passage in sources.passages)


async def test_passages_fit_the_context(engine: RagEngine, chat: ChatModel, upstream: OpenAIServer) -> None:
    long = [Document(f"long {i}", "cat sleeps where " * 50) for i in range(20)]
    await engine.ingester.add("notes", long, deadline=soon())
    sources, _, _ = await ask(Answerer(engine, chat), QUESTION, top_k=20)
    assert 1 < (count := len(sources.passages)) < 20
    messages = [Message(each["role"], each["content"]) for each in upstream.requests[0].body["messages"]]
    tokens = await chat.prompt_tokens(messages)
    assert tokens + 256 <= 2048 < tokens * (count + 1) / count + 256  # and one more would not


async def test_failures_pass_through(engine: RagEngine, chat: ChatModel, upstream: OpenAIServer) -> None:
    answerer = Answerer(engine, chat)
    with pytest.raises(CollectionNotFound):
        await ask(answerer, QUESTION, "nothing")
    upstream.replies = [Reply(cut_after=2)]
    with pytest.raises(UpstreamFailed):
        await ask(answerer, QUESTION)


async def test_a_model_that_takes_no_temperature_is_asked_without(
    engine: RagEngine, chat: ChatModel, upstream: OpenAIServer
) -> None:
    upstream.replies = [Reply(status=400, body='{"error": {"code": "unsupported_value", "param": "temperature"}}')]
    _, answer, _ = await ask(Answerer(engine, chat), QUESTION)
    assert answer == "Hello there."
    assert ["temperature" in request.body for request in upstream.requests] == [True, False]


async def test_closing_stops_the_generation(engine: RagEngine, chat: ChatModel, upstream: OpenAIServer) -> None:
    upstream.replies = [Reply(deltas=["a"] * 1000, pause=0.01)]
    async with aclosing(Answerer(engine, chat).stream(Query(QUESTION, "notes", 3), deadline=soon())) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
    await until(lambda: (upstream.abandoned, upstream.active) == (1, 0), seconds=1.0)


async def test_with_a_real_model(engine: RagEngine, models: Path) -> None:
    artefact = open_artefact(models, "smollm2-135m-instruct")
    chat = EmbeddedModel(artefact, CircuitBreaker("embedded"), slots=1, context_tokens=1024, token_seconds=20.0)
    try:
        upstream = await chat.start()
        _, answer, done = await ask(Answerer(engine, UnaccountedChatModel(upstream)), "Where does the cat sleep?")
    finally:
        await chat.close()
    assert "mat" in answer
    assert done.grounded
    assert done.chat.usage.source is UsageSource.PROVIDER


async def test_what_an_answer_costs_at_most(engine: RagEngine, upstream: OpenAIServer) -> None:
    async with chatting(client_for(upstream), context_tokens=4096) as provider:
        answerer = Answerer(engine, UnaccountedChatModel(provider))
        few, more, most = (answerer.estimate(Query(QUESTION, "notes", top_k)).tokens for top_k in (1, 2, 20))
    assert 900 * 3 / 4 + 256 < few < more < most == 4096, "the model's context"
