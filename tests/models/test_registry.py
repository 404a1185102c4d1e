"""The registry against a real MLflow server: publish there, mirror here, resolve aliases, move them."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from quintet.v1 import classification_pb2, classification_pb2_grpc, model_pb2, model_pb2_grpc

from server.app import running
from server.domain.errors import ModelVersionNotFound, RegistryFailed
from server.models.artefact import open_artefact
from server.models.registry import MlflowStore, open_store
from server.settings import Settings
from tests import tiny_models
from tests.models.test_store import make

START_SECONDS = 120.0


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's own server on loopback, with SQLite behind it, which also keeps the files."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*command, *store],
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_SECONDS
        while not answers(f"{address}/health"):
            assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
            assert time.monotonic() < end, (folder / "log.txt").read_text()[-2000:]
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it and its workers, which keep nothing that is needed
        process.wait(20)


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
    served.sync("m")
    served.sync("nothing")
    assert served.aliases("m") == {"current": "v1", "candidate": "v2"}
    first = open_artefact(served.models, "m")
    assert first.digest == made.digest("m")[1]

    served.point("m", "current", served.resolve("m", "candidate"))
    assert served.aliases("m")["current"] == "v2"
    made.sync("m")
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
    with pytest.raises(RegistryFailed, match="instead of sha256:0"):
        served.sync("m")
    assert "v9" not in served.versions("m")
    client.set_model_version_tag("m", number, "quintet.version", "../../elsewhere")
    with pytest.raises(RegistryFailed, match="has no usable tag"):
        served.sync("m")
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
    await asyncio.to_thread(training.sync, "tiny")
    assert training.aliases("tiny")["current"] == "2", "the registry was told"


def test_an_unreachable_registry_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = open_store(tmp_path, "http://127.0.0.1:9")
    shutil.copytree(make(tmp_path / "made", "v1"), tmp_path / "m" / "v1")
    with pytest.raises(RegistryFailed, match="cannot be reached"):
        registry.sync("m")
    with pytest.raises(RegistryFailed, match="cannot be reached"):
        registry.point("m", "current", "v1")
    assert registry.aliases("m") == {}
