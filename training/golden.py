"""Golden inputs: a finished artefact's outputs for them are stored beside it when it is published.

They are not part of a recipe's digest, so changing them trains nothing again. The published manifest lists golden.json
like any other file, and has the tolerances.
"""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from server.domain.models import ModelTask
from server.domain.pricing import House
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact, entry_of, read_manifest, save_manifest
from server.models.folders import place
from server.models.golden import GOLDEN, Answer, ask
from server.models.spec import OutOfProcess

_TEXTS = (
    "What a day! Everything about this place was wonderful.",
    "The screen broke after a week and nobody answered my letters.",
    "The train leaves at nine and arrives at noon.",
    "The parliament passed the budget after a long debate about taxes.",
    "Photosynthesis turns light into chemical energy in the leaves of plants.",
)
_HOUSES = (
    asdict(House(1710, 8450, 7, 5, 2003, 2003, 856, 2, 2, 1, 3, 8, 0, "CollgCr", "1Fam", "2Story", True, "Gd")),
    asdict(House(896, 11622, 5, 6, 1961, 1961, 882, 1, 1, 0, 2, 5, 0, "NAmes", "1Fam", "1Story", False, "TA")),
)
_EXACT = 1e-3  # fp32 on another processor, or on torch
_QUANTISED = 0.05  # int8 kernels of other processors round and saturate differently


@dataclass(frozen=True)
class Golden:
    """Inputs, and the largest allowed difference of each engine."""

    inputs: tuple[Any, ...]
    tolerance: Mapping[str, float]


_OF_TEXTS = {"onnx": _EXACT, "torch": _EXACT, "onnx-int8": _QUANTISED}
GOLDEN_OF = {
    "sentiment": Golden(_TEXTS, _OF_TEXTS),
    "topics": Golden(_TEXTS, _OF_TEXTS),
    "embedder": Golden(_TEXTS[:3], _OF_TEXTS),
    "house-prices": Golden(_HOUSES, {"onnx": 1e-6}),
    "lid.176": Golden((_TEXTS[0], "Guten Morgen, wie geht es Ihnen?", "Où est la gare ?"), {"fasttext": _EXACT}),
    "en_core_web_sm": Golden(("Ada Lovelace lived in London.",), {"spacy": 0.0}),
}


def lacks_golden(published: Path) -> bool:
    """Whether a published version should have golden inputs and has none. Raises what read_manifest raises."""
    manifest = read_manifest(published)
    return manifest.name in GOLDEN_OF and GOLDEN not in manifest.files


@contextmanager
def with_golden(folder: Path, parent: Path) -> Iterator[Path]:
    """The artefact in `folder` with its golden inputs, in a temporary folder below `parent`."""
    manifest = read_manifest(folder)
    golden = GOLDEN_OF.get(manifest.name)
    if golden is None:
        yield folder
        return
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".golden-", dir=parent) as temporary:
        staged = Path(temporary) / manifest.version
        shutil.copytree(folder, staged, copy_function=place)
        outputs = asyncio.run(_answers(Artefact(folder, manifest, ""), golden))
        content = json.dumps({"inputs": golden.inputs, "outputs": outputs}, ensure_ascii=False, indent=1)
        (staged / GOLDEN).write_text(content + "\n", encoding="utf-8")
        schema = {**manifest.schema, "golden": {"tolerance": dict(golden.tolerance)}}
        files = {**manifest.files, GOLDEN: entry_of(staged / GOLDEN)}
        save_manifest(staged, replace(manifest, files=files, schema=schema))
        yield staged


async def _answers(artefact: Artefact, golden: Golden) -> dict[str, list[Answer]]:
    """Answers to all inputs by engine. Those of torch are those of the fp32 graph."""
    scheduler = Scheduler(1, queue_limit=1)
    engines: dict[str, Any] = {}
    try:
        engines = _engines(artefact, scheduler)
        found = {
            kind: [
                {key: round(number, 6) for key, number in sorted((await ask(engine, each)).items())}
                for each in golden.inputs
            ]
            for kind, engine in engines.items()
        }
    finally:
        for engine in engines.values():
            if isinstance(engine, OutOfProcess):
                engine.close()
        scheduler.close()
    return found | ({"torch": found["onnx"]} if "onnx" in found else {})


def _engines(artefact: Artefact, scheduler: Scheduler) -> dict[str, Any]:
    from server.inference.onnx_text import FILES, load
    from server.inference.text import TextClassifier, TextEmbedder

    match artefact.manifest.schema.get("task"):
        case "classification":
            return {kind: TextClassifier(load(artefact, ModelTask.CLASSIFICATION, kind), scheduler) for kind in FILES}
        case "embedding":
            return {kind: TextEmbedder(load(artefact, ModelTask.EMBEDDING, kind), scheduler) for kind in FILES}
        case "regression":
            from server.tasks.pricing.engine import HousePricer

            return {"onnx": HousePricer(artefact, scheduler)}
        case "language_id":
            from server.tasks.analysis.language import FastTextIdentifier

            return {"fasttext": FastTextIdentifier(artefact, scheduler)}
        case "linguistics":
            from server.tasks.analysis.spacy_parser import SpacyParser

            return {"spacy": SpacyParser(artefact, scheduler)}
        case other:
            raise ValueError(f"no engine for {other}")
