"""Who may see and do what: every method of the contract, in a real server, as its row in the table says."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from quintet.v1 import common_pb2, model_pb2, rag_pb2, usage_pb2

from server.app import running
from server.domain.access import Right
from server.rpc.access import Resource
from server.rpc.service_spec import MethodSpec
from server.settings import Settings
from tests.e2e.test_bad_input import details
from tests.fakes import OpenAIServer
from tests.services import SERVICES
from tests.tenants import add_tenant, bearer, replace
from tests.tiny_models import add, add_embedder

Code = grpc.StatusCode
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
DOCUMENTS = [rag_pb2.Document(id="1", text="the house is good")]
REQUEST: dict[str, Any] = {
    "question": "why?",
    "query": "a house",
    "texts": ["a house"],
    "text": "a house",
    "documents": DOCUMENTS,
    "document_ids": ["1"],
    "name": "tiny",
}


class Answer(NamedTuple):
    """How a call ended."""

    code: grpc.StatusCode
    reason: str = ""
    message: str = ""
    response: Any = None

    @property
    def is_refused(self) -> bool:
        return self.code is Code.PERMISSION_DENIED or self.reason in {"COLLECTION_NOT_FOUND", "MODEL_NOT_FOUND"}


@dataclass
class House:
    """A server with tenants, and their keys."""

    channel: grpc.aio.Channel
    rows: dict[str, tuple[MethodDescriptor, MethodSpec]]  # by path
    file: Path
    keys: dict[str, str]

    async def call(self, tenant: str, path: str, **fields: Any) -> Answer:
        """A call of any method, up to its first response."""
        method, _ = self.rows[path]
        message = request(method, **fields)
        metadata, read = bearer(self.keys[tenant]), GetMessageClass(method.output_type).FromString
        try:
            if method.client_streaming:
                upload: Any = self.channel.stream_unary(path, response_deserializer=read)
                answer = await upload(iter([message]), metadata=metadata, timeout=20)
            elif method.server_streaming:
                watch: Any = self.channel.unary_stream(path, response_deserializer=read)
                stream = watch(message, metadata=metadata, timeout=20)
                answer = await stream.read()
                while method.name == "Reindex" and await stream.read() is not grpc.aio.EOF:
                    pass  # to its end, so that it is not in the way of what comes next
                stream.cancel()
            else:
                unary: Any = self.channel.unary_unary(path, response_deserializer=read)
                answer = await unary(message, metadata=metadata, timeout=20)
        except grpc.aio.AioRpcError as error:
            return Answer(error.code(), str(details(error)["ErrorInfo"].reason), error.details() or "")
        return Answer(Code.OK, response=answer)

    async def rag(self, tenant: str, method: str, **fields: Any) -> Answer:
        return await self.call(tenant, f"/quintet.v1.RagService/{method}", **fields)

    async def prepare(self, name: str) -> None:
        """Make a collection with its owner, and with a document, unless it is there; or see that there is none."""
        if name in {"absent", "reserved"}:
            await self.rag("operator", "DeleteCollection", collection=name)
        elif name in OWNERS:
            made = await self.rag(OWNERS[name], "CreateCollection", collection=name)
            assert made.reason in {"", "COLLECTION_EXISTS"}, made
            assert (await self.rag(OWNERS[name], "AddDocuments", collection=name)).code is Code.OK

    def touching(self, resource: Resource, *rights: Right) -> Iterable[tuple[str, Right]]:
        """The methods that touch a resource in one of these ways."""
        for path, (_, row) in self.rows.items():
            for touch in row.touches:
                if touch.resource is resource and touch.right in rights:
                    yield path, touch.right


def request(method: MethodDescriptor, **fields: Any) -> bytes:
    """A valid request of a method, with these fields where it has them."""
    kind = GetMessageClass(method.input_type)
    chat = [{"role": "CHAT_ROLE_USER", "content": "hi"}]
    given = {**REQUEST, **({"messages": chat} if method.containing_service.name == "ChatService" else {}), **fields}
    message = kind(**{name: value for name, value in given.items() if name in kind.DESCRIPTOR.fields_by_name})
    return message.SerializeToString()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    models = tmp_path / "models"
    models.mkdir()
    file = tmp_path / "tenants.toml"
    tables = {
        "me": 'roles = ["call", "ingest"]',
        "they": 'roles = ["call", "ingest"]',
        "operator": 'roles = ["call", "ingest", "admin"]',
        "limited": 'roles = ["call", "ingest"]\nmodels = ["tiny"]',
        "limited-operator": 'roles = ["admin"]\nmodels = ["tiny"]',
        "nothing": 'roles = ["call", "ingest", "admin"]\nmodels = []',
    }
    keys = {name: add_tenant(file, name, body) for name, body in tables.items()}

    def publish() -> None:
        add(models, "1")
        add_embedder(models, "1")

    await asyncio.to_thread(publish)
    async with OpenAIServer().running() as provider:
        settings: dict[str, Any] = {"llm_base_url": provider.base_url, "llm_model": "remote"}
        common = Settings(
            port=0,
            data=tmp_path,
            llm_api_key=provider.api_key,
            shutdown_pause_seconds=0,
            models={"tiny": {}},
            **settings,
        )
        async with running(common) as app:  # without tenants: what it makes has no owner
            await app.loaded()
            async with grpc.aio.insecure_channel(app.address) as channel:
                add_documents: Any = channel.unary_unary("/quintet.v1.RagService/AddDocuments")
                for name in ("unowned", "unowned-open"):
                    made = rag_pb2.AddDocumentsRequest(collection=name, documents=DOCUMENTS)
                    await add_documents(made.SerializeToString(), timeout=20, wait_for_ready=True)
        replace(file, file.read_text() + GRANTS)
        async with running(common.model_copy(update={"tenants": file})) as app:
            await app.loaded()
            rows = {
                f"/{service.full_name}/{name}": (SERVICES[service.name].methods_by_name[name], row)
                for service in app.services
                for name, row in service.methods.items()
            }
            async with grpc.aio.insecure_channel(app.address) as channel:
                made_house = House(channel, rows, file, keys)
                for name in COLLECTIONS:
                    await made_house.prepare(name)
                yield made_house


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
            await house.prepare(name)
        assert right is Right.CREATE or len(refusals) == 1, f"{path}: absent and forbidden differ: {refusals}"
        for name, rights in COLLECTIONS.items():
            shown = any(name in message.rpartition("known: ")[2].split(", ") for message in refusals)
            assert not shown or right in rights, (path, name, refusals)


async def test_an_administrator_may_touch_every_collection(house: House) -> None:
    for path, right in house.touching(Resource.COLLECTION, Right.READ, Right.WRITE, Right.ADD, Right.DELETE):
        for name in ("own", "others", "unowned"):
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
    for tenant, told in (("limited", False), ("me", True), ("limited-operator", True)):
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
    assert (await house.call("they", "/quintet.v1.ChatService/Chat")).code is Code.OK
    for path, _ in house.touching(Resource.USAGE, Right.SEE):
        answers = [
            await house.call("me", path, filter=usage_pb2.UsageFilter(tenant=name)) for name in ("they", "nobody")
        ]
        assert answers[0] == answers[1], "whether there is such a tenant is not told"
        assert answers[0].code is Code.PERMISSION_DENIED
        own = (await house.call("me", path)).response
        theirs = (await house.call("they", path)).response
        assert (own.ByteSize(), bool(theirs.ByteSize())) == (0, True)


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
