"""Versions of a tiny text classifier, real enough to be published, loaded, checked and replaced."""

import asyncio
import json
import tempfile
from pathlib import Path

import onnx

from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact, read_manifest, write_manifest
from server.models.golden import GOLDEN, Answer, ask
from server.models.store import ModelStore
from tests.small_artefacts import LABELS, MAX_TOKENS, WIDTH, onnx_classifier, tiny_graph, tiny_tokenizer

TEXTS = ["the house is good", "a very bad garden"]


def make(folder: Path, version: str, *, name: str = "tiny", wrong_by: float = 0.0, variant: int = 0) -> Path:
    """A finished artefact in `folder`; golden outputs are `wrong_by` that much.

    Versions differ in their weights, and so do variants of a version.
    """
    folder.mkdir(parents=True)
    onnx.save(tiny_graph("logits", seed=1000 * variant + sum(version.encode())), folder / "model.onnx")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    schema = {"engine": "onnx", "max_tokens": MAX_TOKENS, "labels": LABELS, "golden": {"tolerance": {"onnx": 1e-3}}}
    write_manifest(folder, name=name, version=version, licence="MIT", schema=schema)
    answers = asyncio.run(_answers(Artefact(folder, read_manifest(folder), "")))
    outputs = [{label: score + wrong_by for label, score in answer.items()} for answer in answers]
    (folder / GOLDEN).write_text(json.dumps({"inputs": TEXTS, "outputs": {"onnx": outputs}}))
    write_manifest(folder, name=name, version=version, licence="MIT", schema=schema)
    return folder


def add(models: Path, version: str, *, name: str = "tiny", alias: str = "current", wrong_by: float = 0.0) -> Path:
    """Make and publish a version; return its folder. Not for a thread that runs an event loop."""
    with tempfile.TemporaryDirectory(dir=models.parent) as aside:
        return ModelStore(models).publish(make(Path(aside) / version, version, name=name, wrong_by=wrong_by), alias)


def add_embedder(models: Path, version: str, name: str = "embedder", output: str = "embedding") -> Path:
    """Make and publish a version of the embedder, or of a reranker (output "logits"), without golden inputs."""
    with tempfile.TemporaryDirectory(dir=models.parent) as aside:
        folder = Path(aside)
        onnx.save(tiny_graph(output, seed=sum(version.encode())), folder / "model.onnx")
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
        schema = {"engine": "onnx", "max_tokens": MAX_TOKENS, "dimensions": WIDTH}
        write_manifest(folder, name=name, version=version, licence="MIT", schema=schema)
        return ModelStore(models).publish(folder)


async def _answers(artefact: Artefact) -> list[Answer]:
    scheduler = Scheduler(1, queue_limit=1)
    try:
        engine = onnx_classifier(artefact, scheduler)
        return [await ask(engine, text) for text in TEXTS]
    finally:
        scheduler.close()
