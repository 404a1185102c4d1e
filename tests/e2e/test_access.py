"""Who may see and do what: every method of the contract, in a real server, as its row in the table says."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from quintet.v1 import common_pb2, model_pb2, rag_pb2, usage_pb2

from server.domain.access import Right
from server.rpc.access import Resource
from tests.e2e.house import DOCUMENTS, Code, House, open_house
from tests.tenants import bearer, replace

# What the caller is to each collection, and what it may do with it.
COLLECTIONS: dict[str, set[Right]] = {
    "own": {Right.READ, Right.WRITE, Right.ADD, Right.DELETE},
    "others": set(),
    "readable": {Right.READ},
    "writable": {Right.READ, Right.WRITE, Right.ADD},
    "unowned": set(),
    "unowned-open": {Right.READ},
    "absent": {Right.ADD, Right.CREATE},
    "reserved": set(),
}
GRANTS = """
[collections.readable]
owner = "they"
read = ["me"]
[collections.writable]
owner = "they"
write = ["me"]
[collections.unowned-open]
read = ["*"]
[collections.reserved]
owner = "they"
"""
OWNERS = {"own": "me", "others": "they", "readable": "they", "writable": "they"}


@pytest.fixture(scope="module")
async def shared_house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    tenants = {
        "me": 'roles = ["call", "ingest"]',
        "they": 'roles = ["call", "ingest"]',
        "operator": 'roles = ["call", "ingest", "admin"]',
        "limited": 'roles = ["call", "ingest"]\nmodels = ["tiny"]',
        "chatting": 'services = ["ChatService", "ModelService"]',
        "limited-operator": 'roles = ["admin"]\nmodels = ["tiny"]',
        "nothing": 'roles = ["call", "ingest", "admin"]\nmodels = []',
    }
    folder = tmp_path_factory.mktemp("house")
    async with open_house(folder, tenants, more=GRANTS, unowned=("unowned", "unowned-open")) as house:
        yield house


@pytest.fixture
async def house(shared_house: House) -> House:
    listed = (await shared_house.rag("operator", "ListCollections")).response
    for collection in listed.collections:
        if collection.owner:
            await shared_house.rag("operator", "DeleteCollection", collection=collection.index.collection)
    for name in COLLECTIONS:
        await prepare(shared_house, name)
    return shared_house


async def prepare(house: House, name: str) -> None:
    """Make a collection with its owner, and with a document, unless it is there; or see that there is none."""
    if name in {"absent", "reserved"}:
        await house.rag("operator", "DeleteCollection", collection=name)
    elif name in OWNERS:
        made = await house.rag(OWNERS[name], "CreateCollection", collection=name)
        assert made.reason in {"", "COLLECTION_EXISTS"}, made
        assert (await house.rag(OWNERS[name], "AddDocuments", collection=name)).code is Code.OK


async def test_collections(house: House) -> None:
    """Every method that touches a collection, with every relation that a caller can have to one."""
    checked = list(house.touching(Resource.COLLECTION, Right.READ, Right.WRITE, Right.ADD, Right.CREATE, Right.DELETE))
    named = {path for path, (method, _) in house.rows.items() if "collection" in method.input_type.fields_by_name}
    assert {path for path, _ in checked} == named, "every method that names a collection is checked"
    for path, right in checked:
        refusals = set()
        for name, rights in COLLECTIONS.items():
            answer = await house.call("me", path, collection=name)
            what = path, name, answer
            if right is Right.CREATE:
                assert answer.code is (Code.OK if right in rights else Code.ALREADY_EXISTS), what
                if answer.reason:
                    assert (answer.reason, answer.message) == ("COLLECTION_EXISTS", f'the collection "{name}" exists')
            elif right in rights:
                assert not answer.is_refused, what
                assert answer.code is Code.OK or answer.reason in {"MODEL_UNAVAILABLE", "GENERATION_NOT_FOUND"}, what
            else:
                assert (answer.code, answer.reason) == (Code.NOT_FOUND, "COLLECTION_NOT_FOUND"), what
                refusals.add(answer.message.replace(f'"{name}"', "NAME").replace(f"grant {name}", "grant NAME"))
            await prepare(house, name)
        assert right is Right.CREATE or len(refusals) == 1, f"{path}: absent and forbidden differ: {refusals}"
        for name, rights in COLLECTIONS.items():
            shown = any(name in message.rpartition("known: ")[2].split(", ") for message in refusals)
            assert not shown or right in rights, (path, name, refusals)


async def test_an_administrator_may_touch_every_collection(house: House) -> None:
    for path, right in house.touching(Resource.COLLECTION, Right.READ, Right.WRITE, Right.ADD, Right.DELETE):
        for name in ("own", "others") if right is Right.DELETE else ("own", "others", "unowned"):
            answer = await house.call("operator", path, collection=name)
            assert not answer.is_refused, (path, right, answer)
            await house.rag("operator", "AddDocuments", collection=name)


async def test_lists_of_collections(house: House) -> None:
    async def listed(tenant: str) -> dict[str, str]:
        names: dict[str, str] = {}
        token = ""
        while True:
            answer = await house.rag(tenant, "ListCollections", page_size=2, page_token=token)
            names |= {each.index.collection: each.owner for each in answer.response.collections}
            if not (token := answer.response.next_page_token):
                return names

    mine = {"own": "me", "readable": "", "writable": "", "unowned-open": ""}
    assert await listed("me") == mine, "the owner is shown to the owner alone"
    every = {"unowned": "", "unowned-open": "", **OWNERS}
    assert await listed("operator") == every
    answer = await house.rag("me", "Retrieve")  # the default collection does not exist
    assert answer.message.startswith('tenant "me" has no collection "wikipedia" to read (an operator grants access: ')
    assert "quintet tenants grant wikipedia --read me)" in answer.message
    assert answer.message.endswith("; known: own, readable, unowned-open, writable")
    answer = await house.rag("operator", "Retrieve")
    assert answer.message == 'no such collection: "wikipedia"; known: ' + ", ".join(sorted(every))


async def test_an_import_that_goes_on_to_another_collection(house: House) -> None:
    upload: Any = house.channel.stream_unary("/quintet.v1.RagService/ImportDocuments")
    for first, second in (("own", "others"), ("others", "own")):
        messages = [
            rag_pb2.ImportDocumentsRequest(collection=name, documents=DOCUMENTS).SerializeToString()
            for name in (first, second)
        ]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await upload(iter(messages), metadata=bearer(house.keys["me"]), timeout=20)
        assert caught.value.code() is Code.NOT_FOUND
    kept = await house.rag("they", "GetIndex", collection="others")
    assert kept.response.index.generation == 1


async def test_a_new_name_is_one_tenants(house: House) -> None:
    """Of two tenants that begin to write to a new name at once, one gets it."""
    for number in range(5):
        name = f"new-{number}"
        answers = await asyncio.gather(
            *(house.rag(tenant, "AddDocuments", collection=name) for tenant in ("me", "they", "me", "they"))
        )
        ends = [answer.reason for answer in answers]
        assert sorted(ends) == ["", "", "COLLECTION_NOT_FOUND", "COLLECTION_NOT_FOUND"], answers
        owner = "me" if not ends[0] else "they"
        described = await house.rag(owner, "GetIndex", collection=name)
        assert described.response.index.generation == 1, "the others wrote nothing"


async def test_a_changed_file_holds_for_the_next_call(house: House) -> None:
    assert (await house.rag("me", "Retrieve", collection="others")).code is Code.NOT_FOUND
    text = house.file.read_text()
    replace(house.file, text + '[collections.others]\nread = ["me"]\n')
    async with asyncio.timeout(10):
        while (await house.rag("me", "Retrieve", collection="others")).code is not Code.OK:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    replace(house.file, text + '[collections.others]\nowner = "me"\n')
    async with asyncio.timeout(10):
        while (await house.rag("they", "Retrieve", collection="others")).code is Code.OK:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (await house.rag("me", "DeleteCollection", collection="others")).code is Code.OK, "it was given away"
    replace(house.file, text)
    async with asyncio.timeout(10):
        while (await house.rag("they", "CreateCollection", collection="others")).code is not Code.OK:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_models_are_used_from_the_allow_list_alone(house: House) -> None:
    using = list(house.touching(Resource.MODEL, Right.USE))
    tasks = {"ChatService", "ClassificationService", "EmbeddingService", "PricingService", "AnalysisService"}
    assert tasks <= {path.split("/")[1].removeprefix("quintet.v1.") for path, _ in using}
    houses: Any = house.rows["/quintet.v1.PricingService/PredictPrice"][0].input_type.fields_by_name["houses"]
    for path, _ in using:
        fields: dict[str, Any] = {"collection": "own", "houses": [GetMessageClass(houses.message_type)()]}
        answer = await house.call("nothing", path, **fields)
        if answer.code is Code.INVALID_ARGUMENT:  # a house has many fields
            continue
        assert answer.code is Code.PERMISSION_DENIED, (path, answer)
        assert answer.message.endswith("models allowed: none")
        assert "remote" not in answer.message, "which model the operator chose is not told"
        if "model" in house.rows[path][0].input_type.fields_by_name:
            there, absent = [await house.call("limited", path, model=name) for name in ("remote", "no-such-model")]
            assert there.message == absent.message.replace("no-such-model", "remote"), "absent and forbidden"
            assert there.code is absent.code is Code.PERMISSION_DENIED
    assert (await house.call("limited", "/quintet.v1.ClassificationService/Classify", model="tiny")).code is Code.OK


async def test_models_outside_the_allow_list_do_not_exist(house: House) -> None:
    seeing = {path.rpartition("/")[2] for path, _ in house.touching(Resource.MODEL, Right.SEE)}
    assert seeing == {"ListModels", "GetModel"}
    models = "/quintet.v1.ModelService"
    for tenant, shown in (("limited", {"tiny"}), ("limited-operator", None), ("me", None)):
        response: model_pb2.ListModelsResponse = (await house.call(tenant, f"{models}/ListModels")).response
        names = {model.ref.name for model in response.models}
        assert names == shown if shown else {"tiny", "embedder", "remote", "sentiment"} <= names
    there, absent = [await house.call("limited", f"{models}/GetModel", name=name) for name in ("embedder", "nothing")]
    assert there.message == 'no such model: "embedder"; known: tiny'
    assert absent.message == 'no such model: "nothing"; known: tiny'
    assert (await house.call("limited", f"{models}/GetModel", name="tiny")).code is Code.OK
    assert (await house.call("limited-operator", f"{models}/GetModel", name="embedder")).code is Code.OK
    wrong = await house.call("limited", "/quintet.v1.ClassificationService/Classify", model="topics")
    assert "sentiment" not in wrong.message


async def test_why_a_service_is_down_names_no_hidden_model(house: House) -> None:
    path = "/quintet.v1.ModelService/GetServerInfo"
    for tenant, told in (("limited", False), ("chatting", False), ("me", True), ("limited-operator", True)):
        response: model_pb2.GetServerInfoResponse = (await house.call(tenant, path)).response
        (pricing,) = [each for each in response.services if each.name.endswith("PricingService")]
        assert not pricing.serving
        assert ("house-prices" in pricing.message) is told
        assert pricing.message


async def test_what_is_managed_needs_an_administrator(house: House) -> None:
    for resource in Resource:
        for path, _ in house.touching(resource, Right.MANAGE):
            assert (await house.call("me", path)).code is Code.PERMISSION_DENIED, path
            if not path.endswith("WatchUsage"):  # it says nothing before a call is settled
                fields = {"alias": "candidate", "target": "current"} if path.endswith("SetAlias") else {}
                assert (await house.call("limited-operator", path, **fields)).code is Code.OK, path


async def test_usage_is_the_tenants_own(house: House) -> None:
    for tenant in ("they", "operator"):
        assert (await house.call(tenant, "/quintet.v1.ChatService/Chat")).code is Code.OK
    for path, _ in house.touching(Resource.USAGE, Right.SEE):
        answers = [
            await house.call("me", path, filter=usage_pb2.UsageFilter(tenant=name)) for name in ("they", "nobody")
        ]
        assert answers[0] == answers[1], "whether there is such a tenant is not told"
        assert answers[0].code is Code.PERMISSION_DENIED
        for tenant, seen in (("they", {"they"}), ("operator", {"they", "operator"})):
            response = (await house.call(tenant, path)).response
            found = {each.tenant for each in (*getattr(response, "sums", ()), *getattr(response, "records", ()))}
            assert found >= seen if tenant == "operator" else found == seen, (path, tenant)


async def test_every_method_says_what_it_touches(house: House) -> None:
    """A message that carries documents, models or usage of others is reached by methods of such rows alone."""
    kinds = {
        rag_pb2.Collection.DESCRIPTOR: Resource.COLLECTION,
        common_pb2.IndexRef.DESCRIPTOR: Resource.COLLECTION,
        model_pb2.Model.DESCRIPTOR: Resource.MODEL,
        usage_pb2.UsageRecord.DESCRIPTOR: Resource.USAGE,
        usage_pb2.UsageSum.DESCRIPTOR: Resource.USAGE,
    }
    for path, (method, row) in house.rows.items():
        seen, open_types = set(), [method.output_type]
        while open_types:
            kind = open_types.pop()
            seen.add(kind)
            open_types += [
                field.message_type for field in kind.fields if field.message_type and field.message_type not in seen
            ]
        for kind, resource in kinds.items():
            if kind in seen:
                assert resource in {touch.resource for touch in row.touches}, (path, kind.name)
