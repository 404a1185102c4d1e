"""Artefacts on disk: nothing that differs from its manifest is opened, nothing half-written is seen."""

import contextlib
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quintet.v1 import model_pb2

from server.domain.errors import ModelUnavailable
from server.domain.models import ModelTask
from server.models import artefact
from server.models.artefact import MANIFEST, POINTER, Artefact, open_artefact, write_durably, write_manifest
from server.models.store import ModelStore

CONTENT = {"weights.bin": bytes(range(256)) * 8, "folder/labels.txt": b"good\nbad\n"}


def make(folder: Path, version: str = "1-abc", **schema: Any) -> Path:
    """A finished artefact, not yet published."""
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder, name="demo", version=version, licence="MIT", libraries={"numpy": "2"}, schema=schema)
    return folder


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A models folder with the artefact "demo" in it."""
    ModelStore(tmp_path / "models").publish(make(tmp_path / "made", labels=["good", "bad"]))
    return tmp_path / "models"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one published artefact, for tests with many examples: each rewrites the file it breaks."""
    models = tmp_path_factory.mktemp("shared")
    return ModelStore(models).publish(make(models / ".made"))


def edit(models: Path, **changes: Any) -> None:
    path = models / "demo" / "1-abc" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(models: Path) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        open_artefact(models, "demo")
    message = caught.value.message
    assert "make train ONLY=demo" in message
    assert str(models) not in message, "a path of the server reaches the caller"
    return message


def test_what_was_published_is_opened(published: Path) -> None:
    opened = open_artefact(published, "demo")
    assert {name: (opened.path / name).read_bytes() for name in opened.manifest.files} == CONTENT
    assert opened.manifest.schema == {"labels": ["good", "bad"]}
    assert opened.manifest.size_bytes == sum(map(len, CONTENT.values()))
    assert opened.digest == f"sha256:{artefact.file_sha256(opened.path / MANIFEST)}"


def test_parts_are_those_of_the_manifest(published: Path) -> None:
    opened = open_artefact(published, "demo")
    assert opened.part("weights.bin").is_file()
    assert opened.part("folder").is_dir()
    with pytest.raises(ModelUnavailable, match=r"it has no model\.onnx"):
        opened.part("model.onnx")
    with pytest.raises(ModelUnavailable):
        opened.part("fold")


def spoilt(shared: Path, name: str, content: bytes) -> str:
    """The refusal after a file got this content."""
    whole = (shared / name).read_bytes()
    (shared / name).unlink()  # published files may be hard links
    (shared / name).write_bytes(content)
    try:
        return refusal(shared.parents[1])
    finally:
        (shared / name).write_bytes(whole)


@given(position=st.integers(0, 2047), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(shared: Path, position: int, bit: int) -> None:
    content = bytearray(CONTENT["weights.bin"])
    content[position] ^= 1 << bit
    assert "weights.bin does not match its SHA-256" in spoilt(shared, "weights.bin", bytes(content))


@given(length=st.integers(0, 2047))
def test_any_truncation_is_found(shared: Path, length: int) -> None:
    whole = CONTENT["weights.bin"]
    assert f"weights.bin has {length} bytes instead of 2048" in spoilt(shared, "weights.bin", whole[:length])


@pytest.mark.parametrize("missing", [MANIFEST, "weights.bin", "folder/labels.txt"])
def test_missing_files_are_named(published: Path, missing: str) -> None:
    (published / "demo" / "1-abc" / missing).unlink()
    assert f"{Path(missing).name} is missing" in refusal(published)


def test_a_missing_pointer_or_artefact_is_named(published: Path, tmp_path: Path) -> None:
    (published / "demo" / POINTER).unlink()
    assert f"{POINTER} is missing" in refusal(published)
    assert "is missing" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("pointer", ["", "\n", "..", "../../demo/1-abc", "/", ".1-abc"])
def test_a_pointer_cannot_lead_elsewhere(published: Path, pointer: str) -> None:
    (published / "demo" / POINTER).write_text(pointer)
    assert "the pointer names" in refusal(published)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname", "folder/../../outside.bin"])
def test_a_manifest_cannot_name_files_outside(published: Path, name: str) -> None:
    (published / "demo" / "outside.bin").write_bytes(b"x")
    edit(published, files={name: {"sha256": artefact.file_sha256(published / "demo" / "outside.bin"), "bytes": 1}})
    assert "the manifest names a file outside" in refusal(published)


@pytest.mark.parametrize("stranger", ["model.joblib", "folder/pytorch_model.bin", ".hidden"])
def test_a_file_that_the_manifest_does_not_name_is_refused(published: Path, stranger: str) -> None:
    (published / "demo" / "1-abc" / stranger).write_bytes(b"code")
    assert f"{stranger} is not in the manifest" in refusal(published)


def test_the_manifest_of_another_model_is_refused(published: Path) -> None:
    edit(published, name="other")
    assert "the manifest is that of other 1-abc" in refusal(published)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from(["files", "name", "version"]), value=json_values)
def test_no_manifest_gets_another_error(shared: Path, field: str, value: Any) -> None:
    manifest = json.loads((shared / MANIFEST).read_text()) | {field: value}
    spoilt(shared, MANIFEST, json.dumps(manifest).encode())


@given(
    field=st.sampled_from(["created", "licence", "metrics", "schema", "libraries", "inputs", "format", "added later"]),
    value=json_values | st.just(10**400) | st.sampled_from(["0001-01-01T00:00:00+23:59", "9999-12-31", "2026-01-01"]),
)
def test_a_manifest_is_refused_or_can_be_described(shared: Path, field: str, value: Any) -> None:
    """What ModelService says of one model must not fail its list of all."""
    whole = (shared / MANIFEST).read_bytes()
    (shared / MANIFEST).write_text(json.dumps(json.loads(whole) | {field: value}))
    try:
        with contextlib.suppress(ModelUnavailable):
            opened = open_artefact(shared.parents[1], "demo")
            labels = tuple(opened.manifest.schema.get("labels", ()))
            known = opened.describe(ModelTask.CLASSIFICATION, "x", labels=labels)
            model = model_pb2.Model(labels=known.labels, metrics=known.metrics, licence=known.licence)
            model.create_time.FromDatetime(known.create_time or datetime.now(UTC))
    finally:
        (shared / MANIFEST).write_bytes(whole)


def test_a_newer_format_is_named(published: Path) -> None:
    edit(published, format=2)
    assert "has format 2, which this release cannot read" in refusal(published)
    edit(published, format=1, unknown={"to": "this release"})
    assert open_artefact(published, "demo").manifest.name == "demo"


@given(content=st.binary(max_size=64))
def test_no_bytes_in_place_of_a_manifest_get_another_error(shared: Path, content: bytes) -> None:
    spoilt(shared, MANIFEST, content)


def test_publishing_again_changes_nothing(published: Path, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        files = (p for p in published.rglob("*") if p.is_file() and p.name != POINTER)
        return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}

    before = state()
    ModelStore(published).publish(tmp_path / "made")
    assert state() == before
    assert open_artefact(published, "demo").manifest.version == "1-abc"


def test_publishing_moves_the_pointer_and_keeps_the_old_version(published: Path, tmp_path: Path) -> None:
    ModelStore(published).publish(make(tmp_path / "second", version="2-def"))
    assert open_artefact(published, "demo").manifest.version == "2-def"
    (published / "demo" / POINTER).write_text("1-abc")
    assert open_artefact(published, "demo").manifest.version == "1-abc"


def test_publishing_replaces_a_version_with_another_manifest(published: Path, tmp_path: Path) -> None:
    ModelStore(published).publish(make(tmp_path / "again", labels=["new"]))
    assert open_artefact(published, "demo").manifest.schema == {"labels": ["new"]}
    assert sorted(p.name for p in (published / "demo").iterdir() if p.name != ".lock") == ["1-abc", POINTER]


def test_publishing_copies_where_links_are_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: str, target: str) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", no_links)
    ModelStore(tmp_path / "models").publish(make(tmp_path / "made"))
    shutil.rmtree(tmp_path / "made")
    assert open_artefact(tmp_path / "models", "demo").manifest.name == "demo"


class PowerCut(BaseException):
    """The process ends here."""


def test_a_power_cut_at_any_sync_leaves_the_old_version_or_the_new(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, real, seen = make(tmp_path / "second", version="2-def"), os.fsync, []

    def cut_after(allowed: int) -> Artefact:
        calls = iter(range(1000))

        def fsync(descriptor: int) -> None:
            if next(calls) >= allowed:
                raise PowerCut
            real(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fsync)
            try:
                ModelStore(published).publish(second)
            finally:
                seen.append(open_artefact(published, "demo").manifest.version)
        return open_artefact(published, "demo")

    for allowed in range(1000):
        try:
            cut_after(allowed)
            break
        except PowerCut:
            continue
    assert len(seen) > 5
    assert seen == sorted(seen), "once the new version is seen it stays"
    assert (seen[0], seen[-1]) == ("1-abc", "2-def")


@given(old=st.binary(max_size=32), new=st.binary(max_size=32))
@settings(max_examples=20, deadline=None)  # each syncs twice
def test_a_durable_write_replaces_whole(old: bytes, new: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("durable") / "file"
    write_durably(path, old)
    write_durably(path, new)
    assert path.read_bytes() == new
    assert [p.name for p in path.parent.iterdir()] == ["file"]
