"""A damaged collection is seen by its callers and by operators, and the service serves."""

import asyncio
import logging
import re
from pathlib import Path
from urllib.request import urlopen

import pytest
from grpc_health.v1 import health_pb2
from quintet.v1 import model_pb2
from quintet.v1 import rag_pb2 as pb

from tests.e2e.desk import Serve
from tests.tiny_models import add_embedder
from tests.waiting import until

SECONDS = 20.0


def metrics(log: str) -> str:
    [address] = re.findall(r"metrics on (http://\S+)", log)
    return str(urlopen(address, timeout=10).read().decode())


async def test_a_damaged_collection_is_seen(
    published: Path, serve: Serve, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    await asyncio.to_thread(add_embedder, published, "1")
    async with serve() as desk:
        for name in ("hurt", "lost", "whole"):
            for number in range(2):
                documents = [pb.Document(id=str(number), text="the house is good")]
                request = pb.AddDocumentsRequest(collection=name, documents=documents)
                await desk.rag.AddDocuments(request, timeout=SECONDS)
    log = tmp_path / "index" / "hurt" / "00000000.log"
    raw = log.read_bytes()
    log.write_bytes(raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:])
    (tmp_path / "index" / "lost" / "00000000" / "manifest.json").write_text("[]")

    caplog.clear()
    with caplog.at_level(logging.INFO):
        async with serve(metrics_port=0) as desk:
            await until(lambda: "listening on" in caplog.text)
            listed = (await desk.rag.ListCollections(pb.ListCollectionsRequest(), timeout=SECONDS)).collections
            assert [(each.index.collection, pb.CollectionState.Name(each.state)) for each in listed] == [
                ("hurt", "COLLECTION_STATE_DEGRADED"),
                ("lost", "COLLECTION_STATE_FAILED"),
                ("whole", "COLLECTION_STATE_READY"),
            ]
            index = await desk.rag.GetIndex(pb.GetIndexRequest(collection="hurt"), timeout=SECONDS)
            assert (index.state, index.document_count) == (pb.COLLECTION_STATE_DEGRADED, 1)
            kept = next(log.parent.glob("*.damaged")).name
            assert kept in index.state_message
            query = pb.RetrieveRequest(query="good house", collection="hurt")
            assert (await desk.rag.Retrieve(query, timeout=SECONDS)).passages

            info = await desk.model_service.GetServerInfo(model_pb2.GetServerInfoRequest(), timeout=SECONDS)
            warnings = "\n".join(info.warnings)
            assert 'collection "hurt": ' in warnings
            assert kept in warnings
            assert '"lost" has no generation that is whole' in warnings
            health = health_pb2.HealthCheckRequest(service="quintet.v1.RagService")
            assert (await desk.health.Check(health)).status == health_pb2.HealthCheckResponse.SERVING
            published_metrics = await asyncio.to_thread(metrics, caplog.text)
            for name, degraded in (("hurt", 1.0), ("lost", 1.0), ("whole", 0.0)):
                assert f'quintet_collection_degraded{{collection="{name}"}} {degraded}' in published_metrics
