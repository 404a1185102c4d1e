"""Quotas of what a tenant stores: collections, documents and bytes, over all collections that it owns."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from quintet.v1 import rag_pb2

from tests.e2e.house import Answer, Code, House, open_house
from tests.e2e.test_bad_input import details
from tests.tenants import bearer, replace

QUOTAS = "[tenants.docs.quotas]\ncollections = 2\ndocuments = 5\nbytes = 20_000\n"
GRANTS = '[collections.shared]\nowner = "docs"\nwrite = ["shop"]\n'


@pytest.fixture
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    roles = 'roles = ["call", "ingest"]'
    tenants = {"docs": roles, "shop": roles, "operator": 'roles = ["call", "ingest", "admin"]'}
    async with open_house(tmp_path_factory.mktemp("house"), tenants, more=QUOTAS + GRANTS) as house:
        yield house


def documents(*ids: str, text: str = "the house") -> list[rag_pb2.Document]:
    return [rag_pb2.Document(id=each, text=text) for each in ids]


async def add(house: House, name: str, *ids: str, tenant: str = "docs", **options: Any) -> Answer:
    return await house.rag(tenant, "AddDocuments", collection=name, documents=documents(*ids, **options))


async def stored(house: House, tenant: str = "docs") -> rag_pb2.Storage:
    response: rag_pb2.ListCollectionsResponse = (await house.rag(tenant, "ListCollections")).response
    return response.storage


async def test_documents_are_counted_over_all_collections_of_the_owner(house: House) -> None:
    assert (await add(house, "one", "a", "b", "c")).code is Code.OK
    over = await add(house, "two", "a", "b", "c")
    assert (over.code, over.reason) == (Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert over.message == ("over the limit of tenant docs: 5 documents; 3 are in use and the write adds 3"), (
        "and it made no empty collection"
    )
    assert (await stored(house)).collection_count == 1
    assert (await add(house, "one", "a", "b", "c", text="the garden")).code is Code.OK, "replaced ones are not more"
    assert (await add(house, "shared", "a", tenant="shop")).code is Code.OK
    over = await add(house, "shared", "b", "c", tenant="shop")
    assert over.message == 'over the limit of the owner of collection "shared": quota of documents'
    assert (await add(house, "own", *"abcdefgh", tenant="shop")).code is Code.OK, "it has no quota"
    found = await stored(house)
    assert (found.collection_count, found.document_count) == (2, 4)
    assert (found.max_collection_count, found.max_document_count, found.max_size_bytes) == (2, 5, 20_000)
    sizes = [(await house.rag("docs", "GetIndex", collection=name)).response.size_bytes for name in ("one", "shared")]
    assert found.size_bytes == sum(sizes)
    theirs = await stored(house, "shop")
    assert (theirs.collection_count, theirs.document_count, theirs.HasField("max_document_count")) == (1, 8, False)


async def test_collections(house: House) -> None:
    for name in ("one", "two"):
        assert (await house.rag("docs", "CreateCollection", collection=name)).code is Code.OK
    for method in ("CreateCollection", "AddDocuments", "ImportDocuments"):
        over = await house.rag("docs", method, collection="three")
        assert over.message == "over the limit of tenant docs: 2 collections; 2 are in use and the write adds 1"
    over = await add(house, "shared", "a", tenant="shop")
    assert over.message.endswith("quota of collections"), "the owner of a reserved name is the file's"
    assert (await house.rag("docs", "CreateCollection", collection="one")).code is Code.ALREADY_EXISTS
    assert (await house.rag("docs", "DeleteCollection", collection="one")).code is Code.OK
    assert (await house.rag("docs", "CreateCollection", collection="three")).code is Code.OK


async def test_bytes_and_the_way_back(house: House) -> None:
    assert (await add(house, "one", "a", text="the house " * 500)).code is Code.OK
    assert (await add(house, "one", "b", text="the house " * 500)).code is Code.OK
    over = await add(house, "one", "c", text="the house " * 1500)
    assert "20000 bytes; " in over.message
    generations = (await house.rag("docs", "Compact", collection="one")).response.index.generation
    assert (await house.rag("docs", "DeleteDocuments", collection="one", document_ids=["a", "b"])).code is Code.OK
    assert (await house.rag("docs", "Compact", collection="one")).code is Code.OK
    assert (await stored(house)).size_bytes < 6000
    assert (await add(house, "two", "c", text="the house " * 1200)).code is Code.OK
    back = await house.rag("docs", "Rollback", collection="one", generation=generations)
    assert back.reason == "QUOTA_EXCEEDED", "what comes back counts, too"
    assert (await house.rag("docs", "GetIndex", collection="one")).response.document_count == 0


async def test_writes_at_once_do_not_pass_together(house: House) -> None:
    names = ("one", "two")
    answers = await asyncio.gather(*(add(house, name, str(number)) for number in range(6) for name in names))
    assert [answer.code for answer in answers].count(Code.OK) == 5
    assert (await stored(house)).document_count == 5


async def test_a_refusal_tells_clients_not_to_retry(house: House) -> None:
    upload: Any = house.channel.stream_unary("/quintet.v1.RagService/ImportDocuments")
    messages = [
        rag_pb2.ImportDocumentsRequest(collection="one", documents=documents(*ids)).SerializeToString()
        for ids in ("abcd", "ef", "g")
    ]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upload(iter(messages), metadata=bearer(house.keys["docs"]), timeout=20)
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    found: Any = details(caught.value)
    violation: error_details_pb2.QuotaFailure.Violation = found["QuotaFailure"].violations[0]
    assert violation.subject == "tenant docs"
    assert violation.description == "5 documents; 4 are in use and the write adds 2"
    assert "RetryInfo" not in found
    assert dict(caught.value.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "-1"
    assert (await stored(house)).document_count == 4, "the messages before it stay"


async def test_a_raised_quota_holds_for_the_next_call(house: House) -> None:
    assert (await add(house, "one", *"abcde")).code is Code.OK
    assert (await add(house, "one", "f")).reason == "QUOTA_EXCEEDED"
    replace(house.file, house.file.read_text().replace("documents = 5", "documents = 6"))
    async with asyncio.timeout(10):
        while (await add(house, "one", "f")).code is not Code.OK:  # noqa: ASYNC110  # the file is looked at now and then
            await asyncio.sleep(0.05)
    assert (await add(house, "one", "g")).reason == "QUOTA_EXCEEDED"
