"""All calls of RagService at once, on three servers that share a folder: statuses are those that the contract names."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quintet.v1 import rag_pb2 as pb
from quintet.v1 import rag_pb2_grpc

from tests.conftest import ROOT, start_server, wait_ready
from tests.tiny_models import add_embedder

Code = grpc.StatusCode
TIMEOUT = 20.0
SERVERS = 3
RAG = "quintet.v1.RagService"


def documented() -> dict[str, set[Code]]:
    """The status codes that rag.proto names for each method, and in the service's comment for all."""
    text = (ROOT / "protos" / "quintet" / "v1" / "rag.proto").read_text()
    found: dict[str, set[Code]] = {}
    names = "|".join(code.name for code in Code)
    for comment, method in re.findall(r"((?: *//.*\n)+)  rpc (\w+)\(", text):
        found[method] = {getattr(Code, each) for each in re.findall(rf"\b({names})\b", comment)}
        if same := re.search(r"The status codes are those of (\w+)\.", comment):
            found[method] |= found[same[1]]
    for method in ("AddDocuments", "ImportDocuments"):  # a tenant's refusal; a collection that is absent is created
        found[method].remove(Code.NOT_FOUND)
    # Here every file is whole, every server is ready, and reads ask for no generation.
    return {method: codes - {Code.FAILED_PRECONDITION, Code.UNAVAILABLE} for method, codes in found.items()}


DOCUMENTED = documented()


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Three servers with a small embedder and one folder."""
    data = tmp_path_factory.mktemp("data")
    (data / "models").mkdir()
    add_embedder(data / "models", "1")
    servers = [start_server(data, data / f"log{number}.txt", llm="off") for number in range(SERVERS)]
    try:
        for server in servers:
            wait_ready(server.address, RAG)
        yield [server.address for server in servers]
    finally:
        for server in servers:
            server.process.terminate()
        statuses = [server.process.wait(30) for server in servers]
    assert statuses == [0] * SERVERS
    logs = "".join(path.read_text() for path in sorted(data.glob("log*.txt")))
    assert "Traceback" not in logs, logs[-5000:]


@asynccontextmanager
async def stubs(addresses: list[str]) -> AsyncIterator[list[Any]]:
    async with AsyncExitStack() as stack:
        yield [
            rag_pb2_grpc.RagServiceStub(await stack.enter_async_context(grpc.aio.insecure_channel(address)))
            for address in addresses
        ]


def documents(*ids: int, text: str = "the house is good") -> list[pb.Document]:
    return [pb.Document(id=str(each), text=f"{text} {each}") for each in ids]


async def imported(stub: Any, name: str, number: int) -> Any:
    messages = [pb.ImportDocumentsRequest(collection=name, documents=documents(n)) for n in (number, number + 1)]
    return await stub.ImportDocuments(iter(messages), timeout=TIMEOUT)


async def reindexed(stub: Any, name: str, number: int) -> Any:
    return [event async for event in stub.Reindex(pb.ReindexRequest(collection=name), timeout=TIMEOUT)][-1]


def unary(method: str, **fields: Any) -> Any:
    async def call(stub: Any, name: str, number: int) -> Any:
        known = {key: value(number) if callable(value) else value for key, value in fields.items()}
        request = getattr(pb, f"{method}Request")(collection=name, **known)
        return await getattr(stub, method)(request, timeout=TIMEOUT)

    return call


async def listed(stub: Any, name: str, number: int) -> Any:
    return await stub.ListCollections(pb.ListCollectionsRequest(), timeout=TIMEOUT)


CALLS: dict[str, Any] = {
    "AddDocuments": unary("AddDocuments", documents=documents),
    "ImportDocuments": imported,
    "DeleteDocuments": unary("DeleteDocuments", document_ids=lambda number: [str(number)]),
    "CreateCollection": unary("CreateCollection"),
    "DeleteCollection": unary("DeleteCollection"),
    "Compact": unary("Compact"),
    "Rollback": unary("Rollback", generation=lambda number: number % 4),
    "Reindex": reindexed,
    "Retrieve": unary("Retrieve", query="good house"),
    "ListDocuments": unary("ListDocuments"),
    "ListGenerations": unary("ListGenerations"),
    "GetIndex": unary("GetIndex"),
    "ListCollections": listed,
}


async def status(method: str, stub: Any, name: str, number: int) -> str:
    """What is wrong with how the call ended; empty if the contract names it."""
    try:
        await CALLS[method](stub, name, number)
    except grpc.aio.AioRpcError as error:
        if error.code() not in DOCUMENTED[method]:
            return f"{method}: {error.code().name} {error.details()}"
    return ""


BATCH = st.lists(
    st.tuples(
        st.sampled_from(sorted(CALLS)), st.integers(0, SERVERS - 1), st.sampled_from(["red", "blue"]), st.integers(0, 5)
    ),
    min_size=4,
    max_size=12,
)


@settings(max_examples=12, deadline=None)
@given(batches=st.lists(BATCH, min_size=1, max_size=4))
def test_all_calls_at_once(addresses: list[str], batches: list[list[tuple[str, int, str, int]]]) -> None:
    async def run() -> list[str]:
        async with stubs(addresses) as each:
            return [
                wrong
                for batch in batches
                for wrong in await asyncio.gather(*(status(m, each[at], name, n) for m, at, name, n in batch))
            ]

    assert [wrong for wrong in asyncio.run(run()) if wrong] == []


RACES = (
    ("Compact", "DeleteCollection", "AddDocuments"),
    ("Reindex", "DeleteCollection", "AddDocuments"),
    ("Rollback", "DeleteCollection", "CreateCollection"),
    ("GetIndex", "ListGenerations", "AddDocuments"),
)


@pytest.mark.parametrize("race", RACES, ids="-".join)
async def test_rare_calls_race(addresses: list[str], race: tuple[str, ...]) -> None:
    async with stubs(addresses) as each:
        for turn in range(12):
            name = f"race{turn}"
            await CALLS["AddDocuments"](each[0], name, 0)
            await CALLS["AddDocuments"](each[0], name, 1)
            calls = [status(method, each[at % (1 + turn % 3)], name, 2) for at, method in enumerate(race)]
            assert [wrong for wrong in await asyncio.gather(*calls) if wrong] == []
            await status("DeleteCollection", each[0], name, 0)


async def test_a_new_collection_is_everyones_at_once(addresses: list[str]) -> None:
    """Three servers add to a collection that none of them has, and each reads what the others wrote."""
    async with stubs(addresses) as each:
        for turn in range(8):
            name = f"new{turn}"
            adding = (
                stub.AddDocuments(pb.AddDocumentsRequest(collection=name, documents=documents(at)), timeout=TIMEOUT)
                for at, stub in enumerate(each)
            )
            written = await asyncio.gather(*adding)
            newest = max(answer.index.generation for answer in written)
            assert newest == SERVERS
            request = pb.RetrieveRequest(query="good house", collection=name, top_k=9, min_generation=newest)
            for found in await asyncio.gather(*(stub.Retrieve(request, timeout=TIMEOUT) for stub in each)):
                assert {passage.document_id for passage in found.passages} == {"0", "1", "2"}
            other = each[turn % SERVERS]  # a server that may not know yet that it is gone
            await each[(turn + 1) % SERVERS].DeleteCollection(pb.DeleteCollectionRequest(collection=name))
            added = await other.AddDocuments(pb.AddDocumentsRequest(collection=name, documents=documents(7)))
            assert added.index.generation == 1
            await other.DeleteCollection(pb.DeleteCollectionRequest(collection=name))


async def test_reindexing_lives_beside_the_writes_of_other_servers(addresses: list[str]) -> None:
    async with stubs(addresses) as each:
        await CALLS["AddDocuments"](each[0], "busy", 0)
        ended = asyncio.Event()
        codes: Counter[Code] = Counter()
        acknowledged: set[str] = set()
        newest = 0

        async def write(stub: Any, server: int) -> None:
            nonlocal newest
            number = 0
            while not ended.is_set():
                number += 1
                wanted = documents(1000 * (server + 1) + number)
                try:
                    request = pb.AddDocumentsRequest(collection="busy", documents=wanted)
                    answer = await stub.AddDocuments(request, timeout=TIMEOUT)
                except grpc.aio.AioRpcError as error:
                    codes[error.code()] += 1
                else:
                    codes[Code.OK] += 1
                    acknowledged.add(wanted[0].id)
                    newest = max(newest, answer.index.generation)

        async with asyncio.TaskGroup() as group:
            for server, stub in enumerate(each):
                group.create_task(write(stub, server))
            for turn in range(10):
                last = await reindexed(each[turn % SERVERS], "busy", 0)
                assert last.WhichOneof("event") == "done"
            ended.set()
        assert set(codes) <= {Code.OK, Code.RESOURCE_EXHAUSTED}
        assert codes[Code.OK] > codes[Code.RESOURCE_EXHAUSTED]
        index = await each[0].GetIndex(pb.GetIndexRequest(collection="busy", min_generation=newest), timeout=TIMEOUT)
        assert index.document_count == len(acknowledged | {"0"})
        await each[0].DeleteCollection(pb.DeleteCollectionRequest(collection="busy"))
