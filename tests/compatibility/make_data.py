"""Make a small data folder with a released server, so that later servers can be tested against what it wrote.

    cd CHECKOUT && PYTHONPATH=.:protos .venv/bin/python THIS_FILE OUT.tar.gz

CHECKOUT is a checkout of the release. The models are the tiny ones of its tests, published by its own code; everything
else is written by its server, which is called over gRPC: two versions of a classifier with aliases, a collection with
a generation of files and a log after it, and a ledger with settled calls. OUT also holds `expected.json`: what that
server answered.
"""

import asyncio
import json
import os
import re
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from quintet.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    classification_pb2,
    classification_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    rag_pb2,
    rag_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)

SETTINGS = {
    "QUINTET_PORT": "0",
    "QUINTET_MODELS": '{"tiny": {}}',
    "QUINTET_SHUTDOWN_PAUSE_SECONDS": "0",
    "QUINTET_LLM_MODEL": "gpt",
    "QUINTET_LLM_API_KEY": "test-key",
}
TEXTS = ["the house is good", "a very bad garden"]
FIRST = {"house": "the house is good", "garden": "a very bad garden", "gone": "the house was awful"}


def main(out: Path) -> None:
    """Write `out`."""
    from tests.tiny_models import add, add_embedder

    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        (data / "models").mkdir(parents=True)
        add_embedder(data / "models", "1")
        add(data / "models", "1")
        add(data / "models", "2", alias="candidate")
        expected = asyncio.run(fill(data))
        (data / "expected.json").write_text(json.dumps(expected, indent=2, sort_keys=True) + "\n")
        with tarfile.open(out, "w:gz") as archive:
            archive.add(data, "data")


async def fill(data: Path) -> dict[str, Any]:
    """Start the server of this checkout on `data`, call it, stop it; return what it answered."""
    from tests.fakes import OpenAIServer

    async with OpenAIServer().running() as provider:
        environment = {**os.environ, **SETTINGS, "QUINTET_DATA": str(data), "QUINTET_LLM_BASE_URL": provider.base_url}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-m", "server"), env=environment, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        found = re.match(r"Quintet listens on (\S+);", line)
        assert found, line
        try:
            async with grpc.aio.insecure_channel(found[1]) as channel:
                return await call(channel)
        finally:
            process.terminate()
            await process.wait()


async def call(channel: grpc.aio.Channel) -> dict[str, Any]:
    """Write what later servers must read, and read it once."""
    models, rag = model_pb2_grpc.ModelServiceStub(channel), rag_pb2_grpc.RagServiceStub(channel)
    chat, usage = chat_pb2_grpc.ChatServiceStub(channel), usage_pb2_grpc.UsageServiceStub(channel)
    classification = classification_pb2_grpc.ClassificationServiceStub(channel)
    options: dict[str, Any] = {"timeout": 30, "wait_for_ready": True}
    await models.ReloadModel(model_pb2.ReloadModelRequest(name="tiny"), **options)
    await models.SetAlias(model_pb2.SetAliasRequest(name="tiny", alias="current", target="2"), **options)
    await once_available(rag.AddDocuments, documents(FIRST))
    await rag.Compact(rag_pb2.CompactRequest(collection="notes"), **options)
    await rag.AddDocuments(documents({"later": "the garden is fine"}), **options)
    await rag.DeleteDocuments(rag_pb2.DeleteDocumentsRequest(collection="notes", document_ids=["gone"]), **options)
    for number in range(2):
        message = chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_USER, content=f"Hello {number}")
        await once_available(chat.Chat, chat_pb2.ChatRequest(messages=[message]))
    return await answers(classification, models, rag, usage)


async def answers(classification: Any, models: Any, rag: Any, usage: Any) -> dict[str, Any]:
    """What a server says of the folder, without what differs between servers."""
    classified = await classification.Classify(classification_pb2.ClassifyRequest(texts=TEXTS, model="tiny"))
    model = (await models.GetModel(model_pb2.GetModelRequest(name="tiny"))).model
    query = rag_pb2.RetrieveRequest(query="good house", collection="notes", top_k=10)
    kept = await rag.ListGenerations(rag_pb2.ListGenerationsRequest(collection="notes"))
    everything = usage_pb2.UsageFilter(start_time=Timestamp(seconds=0))
    sums = (await usage.GetUsage(usage_pb2.GetUsageRequest(filter=everything))).sums
    records = (await usage.ListUsage(usage_pb2.ListUsageRequest(filter=everything))).records
    return {
        "classified": MessageToDict(classified),
        "model": {"version": model.ref.version, "digest": model.ref.digest, "aliases": dict(model.aliases)},
        "retrieved": MessageToDict(await rag.Retrieve(query)),
        "listed": MessageToDict(await rag.ListDocuments(rag_pb2.ListDocumentsRequest(collection="notes"))),
        "generations": [each.generation for each in kept.generations],
        "usage": [MessageToDict(each) for each in sums],
        "records": [MessageToDict(each) for each in records],
    }


async def once_available(method: Any, request: Any) -> Any:
    """The method's response, as soon as what it needs is loaded."""
    for _ in range(300):
        try:
            return await method(request, timeout=30, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.1)
    raise TimeoutError("it stayed UNAVAILABLE")


def documents(texts: dict[str, str]) -> rag_pb2.AddDocumentsRequest:
    """A request that adds these texts."""
    return rag_pb2.AddDocumentsRequest(
        collection="notes",
        documents=[rag_pb2.Document(id=id, text=text, metadata={"kind": "note"}) for id, text in texts.items()],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
