"""Aliases, history, and publishers that are killed: a pointer always names a whole version."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server.domain.errors import ModelUnavailable, ModelVersionNotFound
from server.models.artefact import open_artefact, open_version, write_manifest
from server.models.store import ModelStore
from server.models.uses import Use, note_use, read_use

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
    note_use(artefact, "onnx", Use(10, 30, 1.0))
    assert note_use(artefact, "onnx", Use(20, 25, 0.5)) == Use(20, 30, 1.0)
    note_use(artefact, "torch", Use(1, 1, 0.1))
    assert read_use(artefact, "onnx") == Use(20, 30, 1.0)
    assert open_artefact(store.models, "m"), "it does not lie among what the manifest vouches for"


def numbers(value: str) -> str:
    return f'{{"onnx": {{"resident_bytes": 1, "peak_bytes": {value}, "seconds": 1}}}}'


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[1]", "null", '{"onnx": 1}', '{"onnx": {}}', "[" * 100_000, "\xff\xfe"),
        *map(numbers, ('"much"', "-1", "1e400", "NaN", "1e30", "true", "null", "[]", "1" * 400)),
    ],
    ids=lambda content: content[:60],
)
def test_a_damaged_use_file_counts_as_none(store: ModelStore, content: str) -> None:
    artefact = open_artefact(store.models, "m")
    (store.models / "m" / "3.use.json").write_text(content, "latin-1")
    assert read_use(artefact, "onnx") is None
    assert note_use(artefact, "onnx", Use(1, 2, 0.5)) == read_use(artefact, "onnx") == Use(1, 2, 0.5)


def test_what_a_later_release_adds_to_a_use_file_stays(store: ModelStore) -> None:
    artefact = open_artefact(store.models, "m")
    path = store.models / "m" / "3.use.json"
    path.write_text(json.dumps({"format": 2, "onnx": {**Use(1, 2, 0.5)._asdict(), "threads": 3}}))
    assert read_use(artefact, "onnx") == Use(1, 2, 0.5)
    note_use(artefact, "onnx", Use(4, 4, 4.0))
    assert json.loads(path.read_text()) == {"format": 2, "onnx": {**Use(4, 4, 4.0)._asdict(), "threads": 3}}


def make_directory(path: Path) -> None:
    path.mkdir()
    (path / "x").touch()


ODD: dict[str, Callable[[Path], object]] = {
    "a directory": make_directory,
    "a FIFO": os.mkfifo,
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\n../..\n\n.hidden\n"),
    "large": lambda path: path.write_bytes(b"x" * (1 << 25)),
    "a loop": lambda path: path.symlink_to(path),
    "empty": Path.touch,
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("file", ["current", "candidate", "history", "3.use.json", "3/manifest.json", "3/a"])
def test_odd_files_are_a_fault_of_their_model_alone(store: ModelStore, file: str, odd: str) -> None:
    path = store.models / "m" / file
    whole = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    before = store.mark("m")
    ODD[odd](path)
    if file in {"current", "3/manifest.json", "3/a"}:
        with pytest.raises(ModelUnavailable, match='artefact "m" cannot be used'):
            open_artefact(store.models, "m")
        assert before != store.mark("m")
    assert set(store.aliases("m")) <= {"current", "candidate", "previous"}
    assert store.versions("m")
    store.digest("m")
    store.digest_of("m", "3")
    if file == "3.use.json":
        assert read_use(open_artefact(store.models, "m"), "onnx") is None
        note_use(open_artefact(store.models, "m"), "onnx", Use(1, 2, 0.5))
    if whole is not None:
        shutil.rmtree(path) if odd == "a directory" else path.unlink()
        path.write_bytes(whole)
        assert store.open("m")[0].manifest.version == "3"


def test_publishing_again_repairs(store: ModelStore, tmp_path: Path) -> None:
    damaged = store.models / "m" / "3" / "a"
    damaged.unlink()  # a hard link
    damaged.write_text("damaged")
    store.publish(tmp_path / "3")
    assert open_artefact(store.models, "m").manifest.version == "3"


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
