"""What is missing or damaged at the start and appears later: everything that needs it serves by itself."""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from quintet.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    classification_pb2,
    classification_pb2_grpc,
    model_pb2,
    pricing_pb2,
    pricing_pb2_grpc,
    rag_pb2,
    rag_pb2_grpc,
)

from server.models import following
from tests.conftest import start_server, wait_ready
from tests.e2e.desk import Desk, Serve, States, damage, reason
from tests.e2e.tasks import HOUSE
from tests.tiny_models import add, add_embedder

SERVING = health_pb2.HealthCheckResponse.SERVING
CLASSIFICATION = "quintet.v1.ClassificationService"
ARTEFACTS = ("sentiment", "topics", "house-prices", "en_core_web_sm", "lid.176", "embedder", "smollm2-135m-instruct")


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers in this process look at the disk more often."""
    monkeypatch.setattr(following, "_LOOK_SECONDS", 0.05)


async def becomes(condition: Callable[[], Awaitable[object]], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # another process is waited for
            await asyncio.sleep(0.05)


async def health(desk: Desk, service: str) -> int:
    return int((await desk.health.Check(health_pb2.HealthCheckRequest(service=service))).status)


def test_a_server_that_starts_with_nothing_serves_what_appears(models: Path, tmp_path: Path) -> None:
    """As `make train ONLY=...` and `cp -r` make artefacts appear: a folder, and then the pointer to it."""
    folder = tmp_path / "data"
    (folder / "models").mkdir(parents=True)
    running = start_server(folder, tmp_path / "log.txt")
    try:
        with grpc.insecure_channel(running.address) as channel:
            rag = rag_pb2_grpc.RagServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                rag.Retrieve(
                    rag_pb2.RetrieveRequest(query="hello", collection="notes"), timeout=20, wait_for_ready=True
                )
            assert caught.value.code() in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE}
            for name in ARTEFACTS:
                version = (models / name / "current").read_text().strip()
                (folder / "models" / name).mkdir()
                target = folder / "models" / name / version
                shutil.copytree(models / name / version, target, copy_function=os.link)
                (folder / "models" / name / "current").write_text(version)
            wait_ready(running.address, seconds=120)
            documents = [rag_pb2.Document(id="1", text="Penicillin was discovered by Alexander Fleming.")]
            rag.AddDocuments(rag_pb2.AddDocumentsRequest(collection="notes", documents=documents), timeout=20)
            request = rag_pb2.AskRequest(question="Who discovered penicillin?", collection="notes")
            assert rag.Ask(request, timeout=60).answer
            text = analysis_pb2.AnalyzeRequest(text="Ada Lovelace lived in London.")
            assert not analysis_pb2_grpc.AnalysisServiceStub(channel).Analyze(text, timeout=20).failures
            pricing = pricing_pb2_grpc.PricingServiceStub(channel)
            assert pricing.PredictPrice(pricing_pb2.PredictPriceRequest(houses=[HOUSE]), timeout=20).estimates
            classification = classification_pb2_grpc.ClassificationServiceStub(channel)
            assert classification.Classify(classification_pb2.ClassifyRequest(texts=["good"]), timeout=20).results
    finally:
        assert running.stop() == 0


async def test_a_damaged_version_is_served_once_its_files_are_repaired(serve: Serve, tmp_path: Path) -> None:
    folder = await asyncio.to_thread(add, tmp_path / "models", "1")
    whole = (folder / "model.onnx").read_bytes()
    await asyncio.to_thread(damage, folder)
    async with serve() as desk:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.classify()
        assert reason(caught.value) == "MODEL_UNAVAILABLE"
        (folder / "model.onnx").write_bytes(whole)

        async def is_ready() -> bool:
            return bool((await desk.get()).state == States.MODEL_STATE_READY)

        await becomes(is_ready)
        assert await desk.version() == "1"


async def test_a_version_that_could_not_replace_another_does_so_once_it_is_repaired(
    published: Path, serve: Serve
) -> None:
    async with serve() as desk:
        assert await desk.version() == "1"
        folder = await asyncio.to_thread(add, published, "2", alias="candidate")
        whole = (folder / "model.onnx").read_bytes()
        await asyncio.to_thread(damage, folder)
        (published / "tiny" / "current").write_text("2")

        async def says_why() -> bool:
            model = await desk.get()
            return model.wanted_version == "2" and "SHA-256" in model.wanted_message

        await becomes(says_why)
        info = await desk.model_service.GetServerInfo(model_pb2.GetServerInfoRequest())
        assert any('"tiny"' in warning and "version 2" in warning for warning in info.warnings), info.warnings
        assert await desk.version() == "1"
        (folder / "model.onnx").write_bytes(whole)
        await desk.serves("2")

        async def is_content() -> bool:
            model = await desk.get()
            return (model.wanted_version, model.wanted_message) == ("", "")

        await becomes(is_content)


async def test_a_missing_reranker_is_told_and_heals(serve: Serve, tmp_path: Path) -> None:
    await asyncio.to_thread(add_embedder, tmp_path / "models", "1")
    async with serve(rerank=True) as desk:
        documents = [rag_pb2.Document(id="1", text="the house is good")]
        await desk.rag.AddDocuments(rag_pb2.AddDocumentsRequest(collection="notes", documents=documents), timeout=20)
        assert await health(desk, "quintet.v1.RagService") != SERVING
        request = rag_pb2.RetrieveRequest(query="a good house", collection="notes")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.rag.Retrieve(request, timeout=20)
        assert "make train ONLY=reranker" in (caught.value.details() or "")
        await asyncio.to_thread(add_embedder, tmp_path / "models", "1", "reranker", "logits")

        async def is_serving() -> bool:
            return bool(await health(desk, "quintet.v1.RagService") == SERVING)

        await becomes(is_serving)
        assert (await desk.rag.Retrieve(request, timeout=20)).passages


async def test_a_bad_classifier_of_the_settings_takes_nothing_else_down(serve: Serve, tmp_path: Path) -> None:
    for name in ("sentiment", "topics"):
        await asyncio.to_thread(add, tmp_path / "models", "1", name=name)
    async with serve() as desk:  # "tiny" and "other" are missing
        assert await health(desk, CLASSIFICATION) == SERVING
        assert await desk.version("sentiment") == "1"
        assert await health(desk, f"{CLASSIFICATION}/tiny") != SERVING
        info = await desk.model_service.GetServerInfo(model_pb2.GetServerInfoRequest())
        told = {service.name: service for service in info.services}
        assert "make train ONLY=tiny" in told[f"{CLASSIFICATION}/tiny"].message
        assert not told[f"{CLASSIFICATION}/tiny"].required
        assert told[CLASSIFICATION].required
        await asyncio.to_thread(add, tmp_path / "models", "1")

        async def is_serving() -> bool:
            return bool(await health(desk, f"{CLASSIFICATION}/tiny") == SERVING)

        await becomes(is_serving)
        assert await desk.version() == "1"


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# Of the model "tiny", in its folder; what its files say of version 2 cannot be served.
FAULTS: dict[str, Callable[[Path], object]] = {
    "no pointer": lambda folder: (folder / "current").unlink(),
    "pointer of bytes": lambda folder: (folder / "current").write_bytes(b"\xff\xfe\n"),
    "pointer to nothing": lambda folder: (folder / "current").write_text("17"),
    "a FIFO for the pointer": lambda folder: make_fifo(folder / "current"),
    "a folder for the pointer": lambda folder: make_folder(folder / "current"),
    "no manifest": lambda folder: (folder / "2" / "manifest.json").unlink(),
    "a list for the manifest": lambda folder: (folder / "2" / "manifest.json").write_text("[]"),
    "a deep manifest": lambda folder: (folder / "2" / "manifest.json").write_text("[" * 100_000),
    "a FIFO for the manifest": lambda folder: make_fifo(folder / "2" / "manifest.json"),
    "a FIFO for the graph": lambda folder: make_fifo(folder / "2" / "model.onnx"),
    "no graph": lambda folder: (folder / "2" / "model.onnx").unlink(),
    "a file too many": lambda folder: (folder / "2" / "other").touch(),
    "history of bytes": lambda folder: (folder / "history").write_bytes(b"\xff\xfe\n"),
    "a use file of bytes": lambda folder: (folder / "2.use.json").write_bytes(b"\xff\xfe\n"),
}


async def test_faults_of_one_model_are_its_own_and_heal(published: Path, serve: Serve, tmp_path: Path) -> None:
    await asyncio.to_thread(add, published, "2")
    folder, aside = published / "tiny", tmp_path / "aside"

    async def answer() -> str:
        """The version, or why there is none."""
        try:
            return await desk.version()
        except grpc.aio.AioRpcError as error:
            return str(reason(error))

    async def is_back() -> bool:
        return await answer() == "2"

    async with serve(tiny={"preload": False}) as desk:
        assert await desk.version() == "2"
        (folder / "history").unlink()  # version 1 would be served instead
        shutil.copytree(folder, aside)
        for fault, damage_it in FAULTS.items():
            await desk.unload()
            damage_it(folder)
            harmless = {"history of bytes", "a use file of bytes"}
            assert await answer() == ("2" if fault in harmless else "MODEL_UNAVAILABLE"), fault
            listed = await desk.model_service.ListModels(model_pb2.ListModelsRequest(), timeout=5)
            assert {"tiny", "other"} <= {model.ref.name for model in listed.models}, fault
            assert await desk.version("other") == "1", fault
            shutil.rmtree(folder)
            shutil.copytree(aside, folder)
            await becomes(is_back)
