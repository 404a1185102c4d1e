"""Chat and StreamChat, through a real channel to a real server with real models."""

import grpc
from quintet.v1 import chat_pb2, chat_pb2_grpc, common_pb2

from tests.e2e.tasks import TIMEOUT, conversation, made_by


def test_chat_counts_its_tokens(channel: grpc.Channel) -> None:
    stub = chat_pb2_grpc.ChatServiceStub(channel)
    request = chat_pb2.ChatRequest(messages=conversation("Say hello."), max_output_tokens=16, temperature=0, seed=7)
    answer = stub.Chat(request, timeout=TIMEOUT)
    assert answer.message.role == chat_pb2.CHAT_ROLE_ASSISTANT
    assert answer.message.content.strip()
    assert answer.usage.source == common_pb2.USAGE_SOURCE_PROVIDER
    assert 0 < answer.usage.completion_tokens <= 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert made_by(answer.model, "smollm2-135m-instruct")
    assert stub.Chat(request, timeout=TIMEOUT).message.content == answer.message.content  # the same seed


def test_stream_chat_ends_with_exactly_one_done(channel: grpc.Channel) -> None:
    stub = chat_pb2_grpc.ChatServiceStub(channel)
    request = chat_pb2.StreamChatRequest(
        messages=conversation("Tell me a story about a fox."), max_output_tokens=24, temperature=0
    )
    events = list(stub.StreamChat(request, timeout=TIMEOUT))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["delta"] * (len(events) - 1) + ["done"]
    assert len(events) > 5  # it streams
    assert events[-1].done.finish_reason == common_pb2.FINISH_REASON_LENGTH
    assert events[-1].done.usage.completion_tokens == 24


def test_a_cancelled_stream_does_not_hold_the_model(channel: grpc.Channel) -> None:
    stub = chat_pb2_grpc.ChatServiceStub(channel)
    for _ in range(4):  # twice as many as the model has slots
        stream = stub.StreamChat(
            chat_pb2.StreamChatRequest(messages=conversation("Count to a thousand."), max_output_tokens=1024),
            timeout=TIMEOUT,
        )
        next(stream)
        stream.cancel()
    request = chat_pb2.ChatRequest(messages=conversation("Say hello."), max_output_tokens=4)
    stub.Chat(request, timeout=5.0)  # four running stories would take far longer than this
