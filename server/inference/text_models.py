"""ModelSpecs of classifiers and embedders of text. Heavy libraries are imported when a model is loaded."""

from collections.abc import Callable
from functools import partial
from typing import Any

from server.domain.models import ModelTask
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact
from server.models.spec import ModelSettings, ModelSpec


def text_model(
    name: str, task: ModelTask, settings: ModelSettings, scheduler: Scheduler, cache_bytes: int
) -> ModelSpec[Any]:
    """A TextClassifier or TextEmbedder, as `task` says, on ONNX or torch, as `settings` say."""

    def prepare() -> Callable[[Artefact], Any]:
        from server.inference.text import TextClassifier, TextEmbedder

        kind = TextEmbedder if task is ModelTask.EMBEDDING else TextClassifier
        if settings.engine == "torch" or settings.source:
            from server.inference import torch_text

            if settings.source:
                hub = partial(torch_text.load_from_hub, name, settings.source, settings.revision, task, settings.device)
                return lambda _: kind(hub(), scheduler, cache_bytes=cache_bytes)
            load = partial(torch_text.load, task=task, device=settings.device)
        else:
            from server.inference import onnx_text

            load = partial(onnx_text.load, task=task, engine=settings.engine)
        return lambda artefact: kind(load(artefact), scheduler, cache_bytes=cache_bytes)

    return ModelSpec(name, task, prepare, settings)
