"""Documents in bulk and conditions on them, through both clients."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from quintet.v1 import rag_pb2
from quintet_client import AsyncQuintetClient, Document, QuintetClient, errors
from quintet_client.filters import Condition, filters

from tests.clients.recorder import Failure
from tests.clients.small_server import SmallServer

DOCUMENTS: list[Document] = [
    {"id": str(number), "text": "word " * 100, "metadata": {"year": str(1990 + number)}} for number in range(300)
]


def as_json(where: dict[str, Condition]) -> list[dict[str, Any]]:
    return [MessageToDict(each, preserving_proto_field_name=True) for each in filters(where)]


def test_conditions() -> None:
    assert as_json({"kind": "faq"}) == [{"key": "kind", "equals": "faq"}]
    assert as_json({"lang": ["fr", "en"]}) == as_json({"lang": {"en", "fr"}})
    assert as_json({"lang": ["en"]}) == [{"key": "lang", "any_of": {"values": ["en"]}}]
    assert as_json({"year": (1990, None)}) == [{"key": "year", "number_range": {"at_least": 1990.0}}]
    assert as_json({"year": 1990}) == as_json({"year": (1990, 1990.0)})
    assert as_json({"date": (None, "2024-12-31")}) == [{"key": "date", "text_range": {"at_most": "2024-12-31"}}]
    assert len(as_json({"a": "1", "b": "2"})) == 2


@pytest.mark.parametrize("value", [True, None, (None, None), (1, "2"), (1, 2, 3), [1], {"a": 1}])
def test_invalid_conditions(value: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match=r'where\["year"\]: must be a text, a number'):
        filters({"year": value})


async def test_conditions_and_generations_are_sent(server: SmallServer) -> None:
    with QuintetClient(server.address) as client:
        written = client.add_documents("notes", DOCUMENTS[:10])
        found = client.retrieve(
            "word", collection="notes", where={"year": (1995, 1996)}, min_generation=written.index.generation
        )
        assert {passage.document_id for passage in found.passages} == {"5", "6"}
        list(client.stream_ask("word", collection="notes", where={"year": "1990"}, min_generation=7))
    async with AsyncQuintetClient(server.address) as async_client:
        await async_client.ask("word", collection="notes", where={"year": "1990"}, min_generation=7)
    retrieve, stream, ask = (call.request for call in server.recorder.seen[1:])
    assert isinstance(retrieve, rag_pb2.RetrieveRequest)
    assert retrieve.min_generation == written.index.generation
    for request in (stream, ask):
        assert MessageToDict(request)["filters"] == [{"key": "year", "equals": "1990"}]
        assert MessageToDict(request)["minGeneration"] == "7"


async def test_bulk_is_sent_in_several_messages_as_it_comes(server: SmallServer) -> None:
    def generated() -> Iterator[Document]:
        yield from DOCUMENTS

    with QuintetClient(server.address) as client:
        first = client.import_documents("notes", generated())
    assert (first.added_count, first.unchanged_count) == (300, 0)
    async with AsyncQuintetClient(server.address) as async_client:
        again = await async_client.import_documents("notes", generated())
    assert (again.added_count, again.unchanged_count) == (0, 300)
    assert len(server.recorder.methods()) == 6, "128 documents a message"


async def test_invalid_or_refused_bulk_imports(server: SmallServer) -> None:
    def wrong() -> Iterator[Any]:
        yield from DOCUMENTS[:200]
        yield {"id": "x"}

    with QuintetClient(server.address) as client:
        with pytest.raises(errors.InvalidRequest, match=r"documents\[200\]\.text: is missing"):
            client.import_documents("notes", wrong())
        with pytest.raises(errors.QuintetError):
            client.import_documents("notes", DOCUMENTS, timeout=1e-9)
    async with AsyncQuintetClient(server.address) as async_client:
        with pytest.raises(errors.InvalidRequest, match=r"documents\[200\]\.text: is missing"):
            await async_client.import_documents("notes", wrong())
        with pytest.raises(errors.QuintetError):
            await async_client.import_documents("notes", DOCUMENTS, timeout=1e-9)


def test_a_generation_that_is_not_reached_is_waited_for(server: SmallServer) -> None:

    failure = Failure(grpc.StatusCode.UNAVAILABLE, "GENERATION_NOT_REACHED", "is at 3", retry_after=0.01)
    server.recorder.failures["GetIndex"].append(failure)
    with QuintetClient(server.address) as client:
        client.get_index("notes", min_generation=4)
    assert server.recorder.methods() == ["GetIndex", "GetIndex"]
    server.recorder.failures["GetIndex"].extend([failure] * 4)
    with QuintetClient(server.address) as client, pytest.raises(errors.GenerationNotReached):
        client.get_index("notes", min_generation=4)
