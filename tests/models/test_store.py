"""Aliases, history, and publishers that are killed: a pointer always names a whole version."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.domain.errors import ModelVersionNotFound
from server.models.artefact import open_artefact, open_version, write_manifest
from server.models.store import ModelStore, Use

KILLS = 12
# Publishes and moves aliases without end; every third time it publishes other content under the same version.
PUBLISHER = """
import sys
from pathlib import Path
from server.models.store import ModelStore
from tests.models.test_store import make
root = Path(sys.argv[1])
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    content = str(number) if number % 3 == 0 else "same"
    ModelStore(root / "models").publish(make(root / "made" / str(number), f"v{number % 4}", content))
    ModelStore(root / "models").point("m", "candidate", f"v{number % 4}")
"""


def make(folder: Path, version: str, content: str = "") -> Path:
    folder.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (folder / name).write_text(f"{version} {content}" * 1000)
    write_manifest(folder, name="m", version=version, licence="MIT", schema={"content": content})
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    found = ModelStore(tmp_path / "models")
    for version in ("1", "2", "3"):
        found.publish(make(tmp_path / version, version))
    return found


def test_history_leads_back(store: ModelStore) -> None:
    assert store.versions("m") == ["1", "2", "3"]
    assert store.aliases("m") == {"current": "3", "previous": "2"}
    store.point("m", "current", store.resolve("m", "previous"))
    assert store.aliases("m") == {"current": "2", "previous": "3"}
    store.point("m", "candidate", "1")
    assert store.resolve("m", "candidate") == "1"
    with pytest.raises(ModelVersionNotFound):
        store.resolve("m", "4")


def test_the_newest_whole_version_of_the_history_is_opened(store: ModelStore) -> None:
    for version, expected in (("3", "2"), ("2", "1")):
        (store.models / "m" / version / "a").unlink()
        artefact, note = store.open("m")
        assert artefact.manifest.version == expected
        assert "a is missing" in note


def test_a_version_that_was_never_current_is_not_opened_instead(store: ModelStore, tmp_path: Path) -> None:
    store.publish(make(tmp_path / "4", "4"), alias="candidate")
    (store.models / "m" / "3" / "a").unlink()
    assert store.open("m")[0].manifest.version == "2"


def test_the_largest_use_is_kept_by_engine(store: ModelStore) -> None:
    artefact = open_artefact(store.models, "m")
    store.note_use(artefact, "onnx", Use(10, 30, 1.0))
    assert store.note_use(artefact, "onnx", Use(20, 25, 0.5)) == Use(20, 30, 1.0)
    store.note_use(artefact, "torch", Use(1, 1, 0.1))
    assert ModelStore(store.models).use(artefact, "onnx") == Use(20, 30, 1.0)
    assert open_artefact(store.models, "m"), "it does not lie among what the manifest vouches for"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"onnx": 1}', '{"onnx": {}}'])
def test_a_damaged_use_file_counts_as_none(store: ModelStore, content: str) -> None:
    artefact = open_artefact(store.models, "m")
    (store.models / "m" / "3.use.json").write_text(content)
    assert store.use(artefact, "onnx") is None
    assert store.note_use(artefact, "onnx", Use(1, 2, 0.5)) == store.use(artefact, "onnx") == Use(1, 2, 0.5)


def test_a_killed_publisher_leaves_whole_versions(tmp_path: Path) -> None:
    models = tmp_path / "models"
    ModelStore(models).publish(make(tmp_path / "first", "v0"))
    for kill in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(tmp_path), str(kill * 100_000)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.02 + 0.013 * kill)  # the moment is the point: it differs every time
        process.send_signal(signal.SIGKILL)
        process.wait()
        store = ModelStore(models)
        assert open_artefact(models, "m")
        for alias, version in store.aliases("m").items():
            assert open_version(models, "m", version), alias
        for version in store.versions("m"):
            assert open_version(models, "m", version)
    ModelStore(models).publish(make(tmp_path / "last", "v9"))
    assert open_artefact(models, "m").manifest.version == "v9"
