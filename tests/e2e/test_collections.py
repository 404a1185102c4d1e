"""Keeping collections, through a real channel to a real server."""

from collections.abc import Iterator
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from quintet.v1 import rag_pb2 as pb
from quintet.v1 import rag_pb2_grpc

TIMEOUT = 30.0


@pytest.fixture(scope="module")
def rag(channel: grpc.Channel) -> rag_pb2_grpc.RagServiceStub:
    return rag_pb2_grpc.RagServiceStub(channel)


@pytest.fixture
def shop(rag: rag_pb2_grpc.RagServiceStub) -> Iterator[str]:
    """A new collection, which is removed again."""
    rag.CreateCollection(pb.CreateCollectionRequest(collection="shop"), timeout=TIMEOUT)
    yield "shop"
    rag.DeleteCollection(pb.DeleteCollectionRequest(collection="shop"), timeout=TIMEOUT)


def goods(*names: str, **metadata: str) -> list[pb.Document]:
    return [pb.Document(id=name, text=f"The {name} is for sale.", metadata=metadata) for name in names]


def add(rag: rag_pb2_grpc.RagServiceStub, *documents: pb.Document) -> int:
    request = pb.AddDocumentsRequest(collection="shop", documents=documents)
    return rag.AddDocuments(request, timeout=TIMEOUT).index.generation


def found(rag: rag_pb2_grpc.RagServiceStub, *filters: pb.MetadataFilter, at_least: int = 0) -> set[str]:
    request = pb.RetrieveRequest(query="for sale", collection="shop", filters=filters, min_generation=at_least)
    return {passage.document_id for passage in rag.Retrieve(request, timeout=TIMEOUT).passages}


def reason(error: grpc.RpcError) -> str:
    """ErrorInfo.reason of a failed call."""
    trailers = dict(cast("Any", error.trailing_metadata()))
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason)
    raise AssertionError("no ErrorInfo")


def test_the_life_of_a_collection(rag: rag_pb2_grpc.RagServiceStub) -> None:
    made = rag.CreateCollection(pb.CreateCollectionRequest(collection="brief"), timeout=TIMEOUT)
    assert (made.index.collection, made.index.generation, made.model.name) == ("brief", 0, "embedder")
    with pytest.raises(grpc.RpcError) as caught:
        rag.CreateCollection(pb.CreateCollectionRequest(collection="brief"), timeout=TIMEOUT)
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.ALREADY_EXISTS, "COLLECTION_EXISTS")
    names: list[str] = []
    token = ""
    while True:
        page = rag.ListCollections(pb.ListCollectionsRequest(page_size=1, page_token=token), timeout=TIMEOUT)
        names += (each.index.collection for each in page.collections)
        assert all(each.state == pb.COLLECTION_STATE_READY for each in page.collections)
        if not (token := page.next_page_token):
            break
    assert names == sorted(names)
    assert {"brief", "wikipedia"} <= set(names)
    assert rag.DeleteCollection(pb.DeleteCollectionRequest(collection="brief"), timeout=TIMEOUT).index == made.index
    with pytest.raises(grpc.RpcError) as caught:
        rag.GetIndex(pb.GetIndexRequest(collection="brief"), timeout=TIMEOUT)
    assert reason(caught.value) == "COLLECTION_NOT_FOUND"


def test_read_your_writes_filtered(rag: rag_pb2_grpc.RagServiceStub, shop: str) -> None:
    add(rag, *goods("hat", color="red", price="20"), *goods("cap", color="blue", price="15.5"))
    written = add(rag, *goods("tie", color="red", price="9"))
    assert found(rag, at_least=written) == {"hat", "cap", "tie"}
    assert found(rag, pb.MetadataFilter(key="color", equals="red")) == {"hat", "tie"}
    colors = pb.MetadataFilter(key="color", any_of=pb.TextSet(values=["blue", "green"]))
    assert found(rag, colors) == {"cap"}
    cheap = pb.MetadataFilter(key="price", number_range=pb.NumberRange(less_than=20))
    assert found(rag, cheap) == {"cap", "tie"}
    assert found(rag, cheap, pb.MetadataFilter(key="color", text_range=pb.TextRange(at_least="c"))) == {"tie"}
    question = pb.AskRequest(question="What is for sale?", collection=shop, filters=[colors], min_generation=written)
    assert {each.document_id for each in rag.Ask(question, timeout=60).citations} <= {"cap"}
    with pytest.raises(grpc.RpcError) as caught:
        found(rag, at_least=written + 1)
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "GENERATION_NOT_REACHED")


def test_import_streams(rag: rag_pb2_grpc.RagServiceStub, shop: str) -> None:
    def messages() -> Iterator[pb.ImportDocumentsRequest]:
        yield pb.ImportDocumentsRequest(collection=shop, documents=goods("a", "b"))
        yield pb.ImportDocumentsRequest(documents=goods("b", "c"))
        yield pb.ImportDocumentsRequest(collection=shop, documents=goods("d"))

    answer = rag.ImportDocuments(messages(), timeout=TIMEOUT)
    assert (answer.added_count, answer.updated_count, answer.unchanged_count) == (4, 0, 1)
    assert answer.index.generation == 3
    listed: list[str] = []
    token = ""
    while True:
        request = pb.ListDocumentsRequest(collection=shop, page_size=3, page_token=token)
        page = rag.ListDocuments(request, timeout=TIMEOUT)
        listed += (each.id for each in page.documents)
        if not (token := page.next_page_token):
            break
    assert listed == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], ""),
        ([pb.ImportDocumentsRequest(documents=goods("a"))], "collection"),
        (
            [pb.ImportDocumentsRequest(collection="shop", documents=goods("a")), pb.ImportDocumentsRequest()],
            "documents",
        ),
        (
            [
                pb.ImportDocumentsRequest(collection="shop", documents=goods("a")),
                pb.ImportDocumentsRequest(collection="other", documents=goods("b")),
            ],
            "collection",
        ),
    ],
)
def test_every_message_of_an_import_is_checked(
    rag: rag_pb2_grpc.RagServiceStub, shop: str, messages: list[pb.ImportDocumentsRequest], field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        rag.ImportDocuments(iter(messages), timeout=TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(caught.value.details()).startswith(field)
    assert found(rag) == ({"a"} if len(messages) == 2 else set())  # what came before stays


def test_generations(rag: rag_pb2_grpc.RagServiceStub, shop: str) -> None:
    add(rag, *goods("hat"))
    before = rag.GetIndex(pb.GetIndexRequest(collection=shop), timeout=TIMEOUT)
    assert (before.log_count, before.document_count, before.index_type) == (1, 1, "flat")
    assert rag.Compact(pb.CompactRequest(collection=shop), timeout=TIMEOUT).index == before.index
    after = rag.GetIndex(pb.GetIndexRequest(collection=shop, min_generation=1), timeout=TIMEOUT)
    assert (after.log_count, after.document_count, after.state) == (0, 1, pb.COLLECTION_STATE_READY)
    add(rag, *goods("cap"))
    with pytest.raises(grpc.RpcError) as caught:
        rag.Rollback(pb.RollbackRequest(collection=shop, generation=9), timeout=TIMEOUT)
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.NOT_FOUND, "GENERATION_NOT_FOUND")
    assert rag.Rollback(pb.RollbackRequest(collection=shop, generation=1), timeout=TIMEOUT).index.generation == 3
    assert found(rag) == {"hat"}
    listed = rag.ListGenerations(pb.ListGenerationsRequest(collection=shop), timeout=TIMEOUT)
    assert [(each.generation, each.origin) for each in listed.generations] == [
        (3, "rollback to 1"),
        (2, "fold"),
        (1, "fold"),
    ]
    assert listed.index.generation == 3


def test_reindex_tells_how_far_it_is(rag: rag_pb2_grpc.RagServiceStub, shop: str) -> None:
    generation = add(rag, *goods("hat", "cap"))
    *progress, last = list(rag.Reindex(pb.ReindexRequest(collection=shop), timeout=TIMEOUT))
    assert [(each.progress.done, each.progress.total) for each in progress] == [(0, 2), (2, 2)]
    assert last.done.index.generation == generation + 1
    assert last.done.model.name == "embedder"
    assert found(rag) == {"hat", "cap"}
