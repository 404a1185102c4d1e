"""Which models there are and how each is brought into memory: a row a model.

Heavy libraries are imported inside the functions, which run on the pool's loading thread.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from server.domain.models import ModelTask
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact
from server.models.golden import difference
from server.models.specs import ModelSpec
from server.settings import ModelSettings, Settings

CLASSIFIERS = ("sentiment", "topics")
EMBEDDER, PRICES, PARSER, LANGUAGE = "embedder", "house-prices", "en_core_web_sm", "lid.176"
RERANKER = "reranker"

Build = Callable[[Artefact], Any]


def plans(
    settings: Settings, scheduler: Scheduler, spacy_lane: Scheduler
) -> Iterator[tuple[ModelTask, ModelSpec[Any]]]:
    """The plans of all models with what they do. A name that only the settings have is a classifier's."""
    others: dict[str, tuple[ModelTask, Callable[[], Build]]] = {
        PRICES: (ModelTask.REGRESSION, partial(_house_pricer, scheduler)),
        PARSER: (ModelTask.LINGUISTICS, partial(_parser, spacy_lane, settings.result_cache)),
        LANGUAGE: (ModelTask.LANGUAGE_ID, partial(_language_identifier, scheduler)),
    }
    if settings.rerank:
        others[RERANKER] = (ModelTask.RERANKING, partial(_reranker, scheduler))
    texts = dict.fromkeys((*CLASSIFIERS, *settings.models), ModelTask.CLASSIFICATION)
    texts[EMBEDDER] = ModelTask.EMBEDDING
    for name, task in texts.items():
        if name not in others:
            wanted = settings.models.get(name, ModelSettings())
            yield task, _plan(name, wanted, partial(_text_model, name, task, wanted, scheduler, settings.result_cache))
    for name, (task, prepare) in others.items():
        yield task, _plan(name, settings.models.get(name, ModelSettings()), prepare)


def _plan(name: str, wanted: ModelSettings, prepare: Callable[[], Build]) -> ModelSpec[Any]:
    return ModelSpec(
        name,
        prepare,
        difference,
        has_artefact=not wanted.source,
        engine=wanted.engine or "recommended",
        out_of_process=name == PARSER,
        preload=wanted.preload,
        pinned=wanted.pinned,
    )


def _text_model(name: str, task: ModelTask, wanted: ModelSettings, scheduler: Scheduler, cache_bytes: int) -> Build:
    from server.inference.text import TextClassifier, TextEmbedder

    kind = TextEmbedder if task is ModelTask.EMBEDDING else TextClassifier
    if wanted.engine == "torch" or wanted.source:
        from server.inference import torch_text

        if wanted.source:
            hub = partial(torch_text.load_from_hub, name, str(wanted.source), wanted.revision, task, wanted.device)
            return lambda _: kind(hub(), scheduler, cache_bytes=cache_bytes)
        load = partial(torch_text.load, task=task, device=wanted.device)
    else:
        from server.inference import onnx_text

        load = partial(onnx_text.load, task=task, engine=wanted.engine)
    return lambda artefact: kind(load(artefact), scheduler, cache_bytes=cache_bytes)


def _house_pricer(scheduler: Scheduler) -> Build:
    from server.tasks.pricing.engine import HousePricer

    return lambda artefact: HousePricer(artefact, scheduler)


def _reranker(scheduler: Scheduler) -> Build:
    from server.inference.reranker import OnnxReranker

    return lambda artefact: OnnxReranker(artefact, scheduler)


def _parser(lane: Scheduler, cache_bytes: int) -> Build:
    from server.tasks.analysis.spacy_parser import SpacyParser

    return lambda artefact: SpacyParser(artefact, lane, cache_bytes=cache_bytes)


def _language_identifier(scheduler: Scheduler) -> Build:
    from server.tasks.analysis.language import FastTextIdentifier

    return lambda artefact: FastTextIdentifier(artefact, scheduler)
