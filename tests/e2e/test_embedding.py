"""Embed, through a real channel to a real server with a real model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from quintet.v1 import embedding_pb2, embedding_pb2_grpc
from quintet_client import AsyncQuintetClient, QuintetClient

from tests.conftest import ServerProcess, start_server
from tests.e2e.tasks import TIMEOUT, made_by
from tests.e2e.test_bad_input import call, details
from tests.tenants import add_tenant, bearer

Embed = embedding_pb2.EmbedRequest
METHOD = "EmbeddingService/Embed"
CASES: list[tuple[Embed, str]] = [
    (Embed(), "texts"),
    (Embed(texts=["ok", ""]), "texts[1]"),
    (Embed(texts=["ok", " \t\n\u3000\u200b"]), "texts[1]"),
    (Embed(texts=["é" * 2001]), "texts[0]"),
    (Embed(texts=["a"] * 65), "texts"),
    (Embed(texts=["a"], model=""), "model"),
]


def embed(channel: grpc.Channel, *texts: str, **options: Any) -> embedding_pb2.EmbedResponse:
    stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
    return stub.Embed(Embed(texts=texts), timeout=TIMEOUT, **options)


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def test_vectors_have_length_one_and_follow_the_meaning(channel: grpc.Channel) -> None:
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose again.", "猫" * 2000]
    answer = embed(channel, *texts, texts[0])
    assert made_by(answer.model, "embedder")
    vectors = [embedding.values for embedding in answer.embeddings]
    assert {len(vector) for vector in vectors} == {answer.dimensions} == {384}
    assert all(math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-5) for vector in vectors)
    assert vectors[4] == pytest.approx(vectors[0], abs=1e-6)
    assert cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2]) + 0.2


def test_sixty_four_texts(channel: grpc.Channel) -> None:
    assert len(embed(channel, *(f"text number {n}" for n in range(64))).embeddings) == 64


@pytest.mark.parametrize(("request_", "field"), CASES, ids=range(len(CASES)))
def test_limits_name_the_field(channel: grpc.Channel, request_: Embed, field: str) -> None:
    error = call(channel, METHOD, request_.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in details(error)["BadRequest"].field_violations] == [field]


def test_a_model_that_is_no_embedder_is_not_found(channel: grpc.Channel) -> None:
    error = call(channel, METHOD, Embed(texts=["a"], model="sentiment").SerializeToString())
    assert (error.code(), details(error)["ErrorInfo"].reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_both_clients_have_a_method(server: ServerProcess) -> None:
    with QuintetClient(server.address) as client:
        assert client.embed("one text").dimensions == 384
    async with AsyncQuintetClient(server.address) as other:
        assert len((await other.embed(["one text", "another"])).embeddings) == 2


def test_it_needs_the_role_call(tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    keys = {role: add_tenant(file, role, f'roles = ["{role}"]') for role in ("call", "ingest")}
    server = start_server(tmp_path, tmp_path / "log.txt", llm="off", tenants=str(file))
    try:
        with grpc.insecure_channel(server.address) as channel:
            codes = {}
            for role, key in keys.items():
                with pytest.raises(grpc.RpcError) as caught:
                    embed(channel, "a", metadata=bearer(key))
                codes[role] = caught.value.code()
    finally:
        server.stop()
    missing = grpc.StatusCode.FAILED_PRECONDITION  # this server has no embedder
    assert codes == {"call": missing, "ingest": grpc.StatusCode.PERMISSION_DENIED}


def test_what_the_model_does_not_read_or_know_is_marked(channel: grpc.Channel) -> None:
    found = embed(channel, "A cat.", "👍", "cat " * 400).embeddings
    assert [each.unknown_share for each in found] == [0.0, 1.0, 0.0]
    assert [each.truncated for each in found] == [False, False, True]
