"""What requests cost at most, as the services estimate it for the tenants' limits."""

import time
from contextvars import copy_context
from typing import cast

import pytest
from quintet.v1 import chat_pb2, rag_pb2

from server.domain.chat import ChatModel, Message
from server.domain.context import Context, set_current
from server.domain.errors import InvalidRequest, ModelLoading, ModelNotFound
from server.domain.money import Cost
from server.domain.rag import Query
from server.models.handle import Handle, Resident
from server.tasks.chat import service as chat_service
from server.tasks.chat.service import ChatServicer
from server.tasks.rag.answerer import Answerer
from server.tasks.rag.service import RagServicer
from tests.e2e.tasks import conversation
from tests.fakes import MemoryLedger
from tests.usage.test_accounting import DONE, STARTED, Script, accounted


def test_chat() -> None:
    handle: Handle[ChatModel] = Handle("gpt")
    servicer = ChatServicer({"gpt": handle})

    def in_a_call(request: chat_pb2.ChatRequest) -> Cost:
        set_current(Context("/quintet.v1.ChatService/Chat", "r-1", time.monotonic() + 60))
        return servicer.estimate(request)

    def estimate(request: chat_pb2.ChatRequest) -> Cost:
        return copy_context().run(in_a_call, request)

    with pytest.raises(ModelLoading):
        estimate(chat_pb2.ChatRequest(messages=conversation("hi")))
    handle.install(Resident(accounted(Script(), MemoryLedger())))
    assert estimate(chat_pb2.ChatRequest(messages=conversation("hi"))) == Cost(30, 50)
    with pytest.raises(ModelNotFound):
        estimate(chat_pb2.ChatRequest(messages=conversation("hi"), model="other"))
    with pytest.raises(InvalidRequest):
        estimate(chat_pb2.ChatRequest(messages=[chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_ASSISTANT, content="hi")]))


async def test_a_chat_request_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the estimate of its limits and for its answer."""
    converted: list[chat_pb2.ChatRequest] = []

    def convert(request: chat_pb2.ChatRequest) -> list[Message]:
        converted.append(request)
        return [Message("user", "hi")]

    monkeypatch.setattr(chat_service, "_messages", convert)
    handle: Handle[ChatModel] = Handle("gpt")
    handle.install(Resident(accounted(Script(STARTED, DONE), MemoryLedger())))
    servicer, request = ChatServicer({"gpt": handle}), chat_pb2.ChatRequest(messages=conversation("hi"))
    for _ in range(2):
        set_current(Context("/quintet.v1.ChatService/Chat", "r-1", time.monotonic() + 60))
        servicer.estimate(request)
        assert (await servicer.Chat(request, None)).usage.total_tokens == 17
    assert converted == [request] * 2


def test_ask() -> None:
    class Guess:
        def estimate(self, question: Query) -> Cost:
            return Cost(question.top_k * 100, 7)

    handle: Handle[Answerer] = Handle("answers")
    handle.install(Resident(cast("Answerer", Guess())))
    servicer = RagServicer(Handle("collections"), handle)

    def estimate(request: rag_pb2.AskRequest) -> Cost:
        set_current(Context("/quintet.v1.RagService/Ask", "r-1", time.monotonic() + 60))
        return servicer.estimate(request)

    assert copy_context().run(estimate, rag_pb2.AskRequest(question="why?")) == Cost(300, 7)
