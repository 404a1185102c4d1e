"""Documents, searching them, and answers from them, through a real channel to a real server with real models."""

from collections.abc import Iterator

import grpc
import pytest
from quintet.v1 import rag_pb2, rag_pb2_grpc

from tests.e2e.tasks import TIMEOUT, made_by


@pytest.fixture
def collection(channel: grpc.Channel) -> Iterator[str]:
    stub = rag_pb2_grpc.RagServiceStub(channel)
    documents = [
        rag_pb2.Document(
            id="leave", title="Leave", text="Employees of Zorbatron have 37 days of paid leave a year.", uri="x:leave"
        ),
        rag_pb2.Document(id="lunch", title="Lunch", text="The canteen serves lunch from noon to two o'clock."),
        rag_pb2.Document(id="long", text="The moon was bright. " * 500 + "The vault code is kept by the baker."),
    ]
    added = stub.AddDocuments(rag_pb2.AddDocumentsRequest(collection="handbook", documents=documents), timeout=TIMEOUT)
    assert added.added_count + added.unchanged_count == 3
    yield "handbook"
    stub.DeleteDocuments(
        rag_pb2.DeleteDocumentsRequest(collection="handbook", document_ids=["leave", "lunch", "long"]),
        timeout=TIMEOUT,
    )


def test_retrieve_finds_the_passage_and_names_its_place(channel: grpc.Channel, collection: str) -> None:
    stub = rag_pb2_grpc.RagServiceStub(channel)
    request = rag_pb2.RetrieveRequest(query="Who keeps the code of the vault?", collection=collection, top_k=1)
    answer = stub.Retrieve(request, timeout=TIMEOUT)
    passage = answer.passages[0]
    assert passage.document_id == "long"
    assert passage.text.endswith("The vault code is kept by the baker.")
    assert passage.end - passage.start == len(passage.text)
    assert made_by(answer.model, "embedder")


def test_writes_grow_the_generation_and_are_idempotent(channel: grpc.Channel, collection: str) -> None:
    stub = rag_pb2_grpc.RagServiceStub(channel)
    before = stub.GetIndex(rag_pb2.GetIndexRequest(collection=collection), timeout=TIMEOUT)
    assert before.document_count == 3
    assert before.passage_count > 10
    same = rag_pb2.Document(id="lunch", title="Lunch", text="The canteen serves lunch from noon to two o'clock.")
    again = stub.AddDocuments(rag_pb2.AddDocumentsRequest(collection=collection, documents=[same]), timeout=TIMEOUT)
    assert (again.added_count, again.updated_count, again.unchanged_count) == (0, 0, 1)
    changed = rag_pb2.Document(id="lunch", title="Lunch", text="There is no lunch on Sundays.")
    update = stub.AddDocuments(rag_pb2.AddDocumentsRequest(collection=collection, documents=[changed]), timeout=TIMEOUT)
    assert (update.added_count, update.updated_count) == (0, 1)
    assert update.index.generation > before.index.generation
    found = stub.Retrieve(rag_pb2.RetrieveRequest(query="lunch on Sundays", collection=collection, top_k=1))
    assert found.passages[0].text == "There is no lunch on Sundays."
    gone = stub.DeleteDocuments(
        rag_pb2.DeleteDocumentsRequest(collection=collection, document_ids=["lunch", "nobody"]), timeout=TIMEOUT
    )
    assert gone.deleted_count == 1


def test_stream_ask_sends_sources_text_and_done(channel: grpc.Channel, collection: str) -> None:
    stub = rag_pb2_grpc.RagServiceStub(channel)
    question = "How many days of paid leave do employees of Zorbatron have?"
    events = list(
        stub.StreamAsk(rag_pb2.StreamAskRequest(question=question, collection=collection, top_k=1), timeout=TIMEOUT)
    )
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["sources"] + ["delta"] * (len(kinds) - 2) + ["done"]
    assert [citation.document_id for citation in events[0].sources.citations] == ["leave"]
    assert events[0].sources.citations[0].uri == "x:leave"
    assert "37" in "".join(event.delta.text for event in events)
    assert events[-1].done.grounded
    assert events[-1].done.usage.prompt_tokens > 0


def test_ask_says_so_when_the_collection_does_not_know(channel: grpc.Channel, collection: str) -> None:
    stub = rag_pb2_grpc.RagServiceStub(channel)
    request = rag_pb2.AskRequest(question="What is the boiling point of tungsten?", collection=collection)
    answer = stub.Ask(request, timeout=TIMEOUT)
    assert (answer.grounded, answer.abstained) == (False, True)
    assert answer.answer == "The passages do not contain the answer."
    chinese = stub.Ask(rag_pb2.AskRequest(question="鎢的沸點是多少？", collection=collection), timeout=TIMEOUT)
    assert (chinese.answer, chinese.abstained) == ("這些段落不包含答案。", True)


def test_the_demo_collection_answers(channel: grpc.Channel) -> None:
    stub = rag_pb2_grpc.RagServiceStub(channel)
    index = stub.GetIndex(rag_pb2.GetIndexRequest(), timeout=TIMEOUT)
    assert index.document_count >= 1000
    answer = stub.Ask(rag_pb2.AskRequest(question="Who was Ada Lovelace?"), timeout=TIMEOUT)
    assert any("Lovelace" in citation.title for citation in answer.citations)
    assert answer.index.collection == "wikipedia"
