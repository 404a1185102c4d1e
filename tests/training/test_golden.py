"""Golden inputs are added when an artefact is published, and cost nothing that was made."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from server.inference.scheduler import Scheduler
from server.models.artefact import MANIFEST, file_sha256, open_version, read_manifest
from server.models.golden import GOLDEN, difference
from server.models.store import ModelStore
from server.tasks.pricing.engine import HousePricer
from training.golden import GOLDEN_OF, lacks_golden, with_golden


@pytest.fixture
def without(models: Path, tmp_path: Path) -> Path:
    """The artefact house-prices as training leaves it in the cache."""
    store = ModelStore(models)
    folder = tmp_path / "cached"
    shutil.copytree(models / "house-prices" / store.aliases("house-prices")["current"], folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"].pop(GOLDEN)
    manifest["schema"].pop("golden")
    (folder / GOLDEN).unlink()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


async def test_a_published_version_vouches_for_its_golden_inputs(without: Path, tmp_path: Path) -> None:
    before = file_sha256(without / MANIFEST)
    assert lacks_golden(without)

    def published() -> Path:
        with with_golden(without, tmp_path / "models") as finished:
            return ModelStore(tmp_path / "models").publish(finished)

    first = await asyncio.to_thread(published)
    digest = file_sha256(first / MANIFEST)
    assert await asyncio.to_thread(published) == first
    assert file_sha256(first / MANIFEST) == digest, "the same again"
    assert file_sha256(without / MANIFEST) == before, "the cache stays as it is"
    assert not lacks_golden(first)
    artefact = open_version(tmp_path / "models", "house-prices", first.name)
    assert GOLDEN in artefact.manifest.files
    scheduler = Scheduler(1, queue_limit=4)
    assert await difference(HousePricer(artefact, scheduler), artefact) == ""
    golden = json.loads((first / GOLDEN).read_text())
    golden["outputs"]["onnx"][0]["price"] += 0.01
    (first / GOLDEN).unlink()
    (first / GOLDEN).write_text(json.dumps(golden))
    assert "0.01 off, 1e-06 is allowed" in await difference(HousePricer(artefact, scheduler), artefact)
    scheduler.close()


@pytest.mark.parametrize("name", ["sentiment", "topics", "embedder", "house-prices", "lid.176", "en_core_web_sm"])
def test_what_is_published_has_golden_inputs(models: Path, name: str) -> None:
    version = ModelStore(models).aliases(name)["current"]
    manifest = read_manifest(models / name / version)
    golden = GOLDEN_OF[name]
    assert GOLDEN in manifest.files
    assert manifest.schema["golden"]["tolerance"] == dict(golden.tolerance)
