"""Data folders that earlier releases wrote are served as they were served then. `make_data.py` made them."""

import json
import tarfile
from pathlib import Path
from typing import Any

import grpc
import pytest
from quintet.v1 import classification_pb2_grpc, model_pb2_grpc, rag_pb2, rag_pb2_grpc, usage_pb2_grpc

from tests.compatibility.make_data import answers, documents
from tests.conftest import start_server, wait_ready

RELEASES = sorted(Path(__file__).parent.glob("*.tar.gz"))


@pytest.fixture(params=RELEASES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "data"


async def test_it_is_served_as_it_was(data: Path, tmp_path: Path) -> None:
    expected = json.loads((data / "expected.json").read_text())
    server = start_server(data, tmp_path / "log", llm="off", models='{"tiny": {}}')
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            rag = rag_pb2_grpc.RagServiceStub(channel)
            wait_ready(server.address, "quintet.v1.RagService")
            found = await answers(
                classification_pb2_grpc.ClassificationServiceStub(channel),
                model_pb2_grpc.ModelServiceStub(channel),
                rag,
                usage_pb2_grpc.UsageServiceStub(channel),
            )
            for part, value in expected.items():
                assert rounded(found[part]) == rounded(value), part
            written = await rag.AddDocuments(documents({"new": "a house"}), timeout=20)
            assert written.index.generation == int(expected["retrieved"]["index"]["generation"]) + 1
            query = rag_pb2.RetrieveRequest(query="a house", collection="notes", top_k=1)
            assert (await rag.Retrieve(query)).passages[0].document_id == "new"
    finally:
        server.stop()


def rounded(value: Any) -> Any:
    """Scores differ in their last digits between processors."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value
