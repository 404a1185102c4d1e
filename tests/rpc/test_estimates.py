"""What requests cost at most, as the services estimate it for the tenants' limits."""

import time
from contextvars import copy_context
from typing import cast

import pytest
from quintet.v1 import chat_pb2, rag_pb2

from server.domain.chat import ChatModel
from server.domain.context import Context, set_current
from server.domain.errors import InvalidRequest, ModelLoading, ModelNotFound
from server.domain.money import Cost
from server.domain.rag import Query
from server.models.handle import Slot, State
from server.tasks.chat.service import ChatServicer
from server.tasks.rag.answerer import Answerer
from server.tasks.rag.service import RagServicer
from tests.e2e.tasks import conversation
from tests.fakes import MemoryLedger
from tests.usage.test_accounting import Script, accounted


def test_chat() -> None:
    slot: Slot[ChatModel] = Slot("gpt", lambda: None)
    servicer = ChatServicer({"gpt": slot})

    def in_a_call(request: chat_pb2.ChatRequest) -> Cost:
        set_current(Context("/quintet.v1.ChatService/Chat", "r-1", time.monotonic() + 60))
        return servicer.estimate(request)

    def estimate(request: chat_pb2.ChatRequest) -> Cost:
        return copy_context().run(in_a_call, request)

    with pytest.raises(ModelLoading):
        estimate(chat_pb2.ChatRequest(messages=conversation("hi")))
    slot._engine = accounted(Script(), MemoryLedger())
    slot.move(State.READY)
    assert estimate(chat_pb2.ChatRequest(messages=conversation("hi"))) == Cost(30, 50)
    with pytest.raises(ModelNotFound):
        estimate(chat_pb2.ChatRequest(messages=conversation("hi"), model="other"))
    with pytest.raises(InvalidRequest):
        estimate(chat_pb2.ChatRequest(messages=[chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_ASSISTANT, content="hi")]))


def test_ask() -> None:
    class Guess:
        def estimate(self, question: Query) -> Cost:
            return Cost(question.top_k * 100, 7)

    slot: Slot[Answerer] = Slot("answers", lambda: None)
    slot._engine = cast("Answerer", Guess())
    slot.move(State.READY)
    estimate = RagServicer(Slot("collections", lambda: None), slot, "gpt").estimate
    assert estimate(rag_pb2.AskRequest(question="why?")) == Cost(300, 7)
