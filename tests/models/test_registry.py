"""The registry against a real MLflow server: publish there, mirror here, resolve aliases, move them."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
from quintet.v1 import classification_pb2, classification_pb2_grpc, model_pb2, model_pb2_grpc

from server.app import running
from server.domain.errors import ModelVersionNotFound, RegistryFailed
from server.models import mirroring
from server.models.artefact import open_artefact
from server.models.registry import MlflowStore, open_store
from server.models.store import ModelStore, VersionRefused
from server.settings import Settings
from tests import tiny_models
from tests.models.test_store import make
from tests.waiting import until

START_SECONDS = 120.0


class Mlflow:
    """MLflow's own server on loopback, with SQLite behind it, which also keeps the files."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "files"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(self.files)]
        self._log = folder / "log.txt"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, "--workers", "1", *store],
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )

    def wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while not answers(f"{self.uri}/health"):
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < end, self._log.read_text()[-2000:]
            time.sleep(0.2)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # it and its workers, which keep nothing that is needed
        self._process.wait(20)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It accepts connections and answers nothing."""
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)

    def requests(self, what: str) -> int:
        """How many requests it answered whose path begins like this."""
        return len(re.findall(rf'"GET /api/2\.0/{what}\S* HTTP', self._log.read_text()))


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    server = Mlflow(tmp_path_factory.mktemp("mlflow"))
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def uri(mlflow: Mlflow) -> str:
    return mlflow.uri


def sync(store: ModelStore, name: str) -> None:
    """Mirror everything that the registry's aliases name."""
    for named in store.look_up(name):
        store.fetch(named)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def test_a_server_mirrors_what_training_published(uri: str, tmp_path: Path) -> None:
    made = open_store(tmp_path / "training", uri)
    made.publish(make(tmp_path / "1", "v1"))
    made.publish(make(tmp_path / "2", "v2"), "candidate")

    served = open_store(tmp_path / "server", uri)
    (tmp_path / "server").mkdir()
    sync(served, "m")
    sync(served, "nothing")
    assert served.aliases("m") == {"current": "v1", "candidate": "v2"}
    first = open_artefact(served.models, "m")
    assert first.digest == made.digest("m")[1]

    served.point("m", "current", served.resolve("m", "candidate"))
    assert served.aliases("m")["current"] == "v2"
    sync(made, "m")
    assert made.aliases("m")["current"] == "v2", "others follow"
    with pytest.raises(ModelVersionNotFound):
        served.resolve("m", "v3")
    assert [path.name for path in served.models.iterdir()] == ["m"], "downloads leave nothing behind"


def test_what_is_not_what_it_says_is_refused(uri: str, tmp_path: Path) -> None:
    made = open_store(tmp_path / "training", uri)
    made.publish(make(tmp_path / "9", "v9"), "candidate")
    client = MlflowStore(tmp_path, uri)._client
    number = client.get_registered_model("m").aliases["candidate"]
    client.set_model_version_tag("m", number, "quintet.digest", "sha256:0")
    served = open_store(tmp_path / "server", uri)
    (tmp_path / "server").mkdir()
    with pytest.raises(VersionRefused, match="instead of sha256:0"):
        sync(served, "m")
    assert "v9" not in served.versions("m")
    client.set_model_version_tag("m", number, "quintet.version", "../../elsewhere")
    with pytest.raises(VersionRefused, match="has no usable tag"):
        sync(served, "m")
    assert not list(tmp_path.rglob("elsewhere"))


async def test_a_new_server_serves_what_the_registry_says(uri: str, tmp_path: Path) -> None:
    training = open_store(tmp_path / "training", uri)

    def publish(version: str, alias: str) -> None:
        training.publish(tiny_models.make(tmp_path / version, version), alias)

    await asyncio.to_thread(publish, "1", "current")
    await asyncio.to_thread(publish, "2", "candidate")
    settings = Settings(
        port=0, data=tmp_path / "server", registry=uri, llm="off", shutdown_pause_seconds=0, models={"tiny": {}}
    )
    async with running(settings) as app, grpc.aio.insecure_channel(app.address) as channel:
        await app.loaded()
        classify = classification_pb2_grpc.ClassificationServiceStub(channel).Classify
        request = classification_pb2.ClassifyRequest(texts=tiny_models.TEXTS, model="tiny")
        assert (await classify(request, timeout=20)).model.version == "1"
        move = model_pb2.SetAliasRequest(name="tiny", alias="current", target="candidate")
        await model_pb2_grpc.ModelServiceStub(channel).SetAlias(move, timeout=20)
        assert (await classify(request, timeout=20)).model.version == "2"
    await asyncio.to_thread(sync, training, "tiny")
    assert training.aliases("tiny")["current"] == "2", "the registry was told"


def test_an_unreachable_registry_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = open_store(tmp_path, "http://127.0.0.1:9")
    shutil.copytree(make(tmp_path / "made", "v1"), tmp_path / "m" / "v1")
    with pytest.raises(RegistryFailed, match="cannot be reached"):
        sync(registry, "m")
    with pytest.raises(RegistryFailed, match="cannot be reached"):
        registry.point("m", "current", "v1")
    assert registry.aliases("m") == {}


async def test_a_spoilt_version_holds_up_no_other_model_and_is_not_fetched_again(
    mlflow: Mlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring, "_ASK_SECONDS", 0.3)
    training = open_store(tmp_path / "training", mlflow.uri)

    def publish(name: str, version: str, *, is_spoilt: bool = False) -> None:
        training.publish(tiny_models.make(tmp_path / name / version, version, name=name), alias=None)
        if is_spoilt:
            graph = max(mlflow.files.rglob(f"{name}/model.onnx"), key=lambda path: path.stat().st_mtime)
            graph.write_bytes(b"x" + graph.read_bytes()[1:])
        training.point(name, "current", version)

    for name in ("aaa", "zzz"):
        await asyncio.to_thread(publish, name, "1")
    settings = Settings(
        port=0,
        data=tmp_path / "server",
        registry=mlflow.uri,
        llm="off",
        shutdown_pause_seconds=0,
        models={"aaa": {}, "zzz": {}},
    )
    async with running(settings) as app, grpc.aio.insecure_channel(app.address) as channel:
        await app.loaded()
        models = model_pb2_grpc.ModelServiceStub(channel)

        async def model(name: str) -> model_pb2.Model:
            return (await models.GetModel(model_pb2.GetModelRequest(name=name))).model

        async def becomes(name: str, version: str, wanted: str) -> None:
            async with asyncio.timeout(60):
                while (found := await model(name)).ref.version != version or found.wanted_version != wanted:  # noqa: ASYNC110  # it changes by itself
                    await asyncio.sleep(0.05)

        await becomes("aaa", "1", "")
        await becomes("zzz", "1", "")
        await asyncio.to_thread(partial(publish, "aaa", "2", is_spoilt=True))
        await asyncio.to_thread(publish, "zzz", "2")
        await becomes("zzz", "2", "")
        await becomes("aaa", "1", "2")
        found = await model("aaa")
        assert "model.onnx does not match its SHA-256" in found.wanted_message
        info = await models.GetServerInfo(model_pb2.GetServerInfoRequest())
        assert any('"aaa"' in warning and "version 2" in warning for warning in info.warnings)
        before, asked = mlflow.requests("mlflow-artifacts"), mlflow.requests("mlflow/registered-models/search")
        await until(lambda: mlflow.requests("mlflow/registered-models/search") > asked + 20, seconds=60)
        assert mlflow.requests("mlflow-artifacts") == before
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await models.ReloadModel(model_pb2.ReloadModelRequest(name="aaa"), timeout=20)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "does not match" in (caught.value.details() or "")
        assert mlflow.requests("mlflow-artifacts") > before, "an operator asked for it"
        await asyncio.to_thread(publish, "aaa", "3")
        await becomes("aaa", "3", "")


async def test_a_registry_that_hangs_delays_nothing(mlflow: Mlflow, tmp_path: Path) -> None:
    (tmp_path / "server" / "models").mkdir(parents=True)
    for name in ("sentiment", "topics"):
        await asyncio.to_thread(tiny_models.add, tmp_path / "server" / "models", "1", name=name)
    settings = Settings(
        port=0, data=tmp_path / "server", registry=mlflow.uri, llm="off", shutdown_pause_seconds=0, models={}
    )
    begun = time.monotonic()
    with mlflow.stopped():
        async with running(settings) as app, grpc.aio.insecure_channel(app.address) as channel:
            classify = classification_pb2_grpc.ClassificationServiceStub(channel).Classify
            request = classification_pb2.ClassifyRequest(texts=tiny_models.TEXTS)
            await until(lambda: app.health.messages["quintet.v1.ClassificationService"] == "", seconds=60)
            assert (await classify(request, timeout=20)).model.version == "1"
            models = model_pb2_grpc.ModelServiceStub(channel)
            reloaded = await models.ReloadModel(model_pb2.ReloadModelRequest(name="sentiment"), timeout=40)
            assert reloaded.model.load_count == 2, "from disk"
            move = model_pb2.SetAliasRequest(name="sentiment", alias="candidate", target="1")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await models.SetAlias(move, timeout=15)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            info = await models.GetServerInfo(model_pb2.GetServerInfoRequest())
            assert any("registry" in warning for warning in info.warnings), info.warnings
    assert time.monotonic() - begun < 100, "its own time limits count, not the registry's, which take 200 s"


def test_what_concerns_one_model_is_no_outage(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MlflowStore(tmp_path, uri)
    with pytest.raises(VersionRefused, match="cannot say what"):
        store.look_up("it's quoted")
    assert store.look_up("another") == []
