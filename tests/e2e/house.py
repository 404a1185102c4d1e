"""A server with tenants and small real models, and calls of any of its methods as any of them."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from quintet.v1 import rag_pb2

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


@asynccontextmanager
async def open_house(
    folder: Path, tenants: Mapping[str, str], *, more: str = "", unowned: Iterable[str] = ()
) -> AsyncIterator[House]:
    """A server with the models "tiny" and "embedder", and the chat model "remote".

    `tenants` are the tables of tenants by their names, `more` the end of the file, `unowned` collections without owner.
    """
    models, file = folder / "models", folder / "tenants.toml"

    def prepare() -> dict[str, str]:
        models.mkdir()
        add(models, "1")
        add_embedder(models, "1")
        return {name: add_tenant(file, name, body) for name, body in tenants.items()}

    keys = await asyncio.to_thread(prepare)
    replace(file, file.read_text() + more)
    async with OpenAIServer().running() as provider:
        url: Any = provider.base_url
        settings = Settings(
            port=0,
            data=folder,
            llm_base_url=url,
            llm_model="remote",
            llm_api_key=provider.api_key,
            shutdown_pause_seconds=0,
            models={"tiny": {}},
        )
        if unowned:  # made without tenants
            async with running(settings) as app, grpc.aio.insecure_channel(app.address) as channel:
                create: Any = channel.unary_unary("/quintet.v1.RagService/AddDocuments")
                await app.loaded()
                for name in unowned:
                    message = rag_pb2.AddDocumentsRequest(collection=name, documents=DOCUMENTS)
                    await create(message.SerializeToString(), timeout=20)
        async with running(settings.model_copy(update={"tenants": file})) as app:
            await app.loaded()
            rows = {
                f"/{service.full_name}/{name}": (SERVICES[service.name].methods_by_name[name], row)
                for service in app.services
                for name, row in service.methods.items()
            }
            async with grpc.aio.insecure_channel(app.address) as channel:
                yield House(channel, rows, file, keys)
