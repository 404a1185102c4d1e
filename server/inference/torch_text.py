"""Text models on torch: an artefact's own folder, or any safetensors model of a hub, on any device.

An option for GPUs and for models that have no ONNX file; torch, transformers and sentence-transformers are imported
when the first of these engines is made. Code that comes with a model is never run (trust_remote_code=False).
"""

import hashlib
import math
import threading
from collections.abc import Sequence
from typing import Any, Self

from server.domain.errors import ModelUnavailable
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.inference.queue import BatchPolicy
from server.inference.scheduler import Scheduler
from server.inference.text import Outputs, TextClassifier, TextEmbedder
from server.models.artefact import Artefact
from server.models.describe import describe, from_schema

MAX_TOKENS = 512  # for hub models; attention costs the square, and most are trained on no more
# Batches are padded, so texts are of like length; 4 to 8 are fastest on CPUs, and a GPU wants several.
_GATHERING = BatchPolicy(8, math.inf)


class TransformersForward:
    """AutoModelForSequenceClassification with its tokenizer: texts to logits."""

    gathering = _GATHERING

    def __init__(self, source: str, revision: str | None, device: str, max_tokens: int = MAX_TOKENS) -> None:
        self._torch = _prepared_torch(device)
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        model = AutoModelForSequenceClassification.from_pretrained(
            source, revision=revision, trust_remote_code=False, use_safetensors=True, dtype=self._torch.float32
        )
        self.model: Any = model.to(device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        self._tokenizing = threading.Lock()
        self.max_tokens = min(max_tokens, self._tokenizer.model_max_length)

    def __call__(self, texts: Sequence[str]) -> Outputs:
        """Logits of one text at least."""
        with self._tokenizing:  # a tokenizer keeps its settings for padding and truncation in itself
            batch = self._tokenizer(
                list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
            truncated = _truncated(self._tokenizer, texts, self.max_tokens)
        with self._torch.inference_mode():
            logits = self.model(**batch.to(self.model.device)).logits
        return Outputs(logits.cpu().numpy(), truncated)


class SentenceTransformersForward:
    """SentenceTransformer: texts to what its last module gives, be it a vector or the logits of a Dense head."""

    gathering = _GATHERING

    def __init__(
        self, source: str, revision: str | None, device: str, max_tokens: int = MAX_TOKENS, *, normalise: bool = False
    ) -> None:
        self._torch = _prepared_torch(device)
        from sentence_transformers import SentenceTransformer

        self.model: Any = SentenceTransformer(
            source,
            revision=revision,
            device=device,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": self._torch.float32},
        ).eval()
        self._tokenizing = threading.Lock()
        self.max_tokens = min(max_tokens, self.model.max_seq_length or max_tokens)
        self.model.max_seq_length = self.max_tokens
        self._normalise = normalise

    def __call__(self, texts: Sequence[str]) -> Outputs:
        """Logits or vectors of one text at least."""
        with self._tokenizing:  # as above
            batch = self.model.preprocess(list(texts))
            truncated = _truncated(self.model.tokenizer, texts, self.max_tokens)
        on_device = {
            key: value.to(self.model.device) if hasattr(value, "to") else value for key, value in batch.items()
        }
        with self._torch.inference_mode():
            values = self.model(on_device)["sentence_embedding"]
            if self._normalise:
                values = self._torch.nn.functional.normalize(values, dim=1)
        return Outputs(values.cpu().numpy(), truncated)


class TorchClassifier(TextClassifier):
    """A Classifier on torch.

    Making one raises ModelUnavailable if the device is not there or the model does not fit. It blocks: do it on a
    thread.
    """

    @classmethod
    def from_artefact(cls, artefact: Artefact, lanes: Scheduler, device: str = "cpu", *, cache_bytes: int = 0) -> Self:
        """From the torch/ folder of an artefact."""
        kinds = {"transformers": TransformersForward, "sentence-transformers": SentenceTransformersForward}
        kind = kinds[from_schema(artefact, "torch")]
        forward = kind(str(artefact.part("torch")), None, device, from_schema(artefact, "max_tokens"))
        labels = from_schema(artefact, "labels")
        task, tokens = ModelTask.CLASSIFICATION, forward.max_tokens
        description = describe(artefact, task, "torch", labels=labels, max_input_tokens=tokens)
        return cls(forward, description, lanes, cache_bytes=cache_bytes)

    @classmethod
    def from_hub(
        cls,
        name: str,
        source: str,
        revision: str | None,
        lanes: Scheduler,
        device: str = "cpu",
        *,
        cache_bytes: int = 0,
    ) -> Self:
        """From a repository of the model hub or a folder, with the labels of its configuration."""
        forward = TransformersForward(source, revision, device)
        config = forward.model.config
        labels = tuple(str(label) for _, label in sorted(config.id2label.items()))
        if len(labels) < 2 or config.problem_type not in {None, "single_label_classification"}:
            raise ModelUnavailable(f'model "{name}" does not choose one of several labels', metadata={"model": name})
        description = _describe(name, ModelTask.CLASSIFICATION, forward, config, revision=revision, labels=labels)
        return cls(forward, description, lanes, cache_bytes=cache_bytes)


class TorchEmbedder(TextEmbedder):
    """An Embedder on torch; the rest as for TorchClassifier."""

    @classmethod
    def from_artefact(cls, artefact: Artefact, lanes: Scheduler, device: str = "cpu", *, cache_bytes: int = 0) -> Self:
        """From the torch/ folder of an artefact."""
        folder, max_tokens = str(artefact.part("torch")), from_schema(artefact, "max_tokens")
        forward = SentenceTransformersForward(folder, None, device, max_tokens, normalise=True)
        description = describe(artefact, ModelTask.EMBEDDING, "torch", max_input_tokens=forward.max_tokens)
        return cls(forward, description, from_schema(artefact, "dimensions"), lanes, cache_bytes=cache_bytes)

    @classmethod
    def from_hub(
        cls,
        name: str,
        source: str,
        revision: str | None,
        lanes: Scheduler,
        device: str = "cpu",
        *,
        cache_bytes: int = 0,
    ) -> Self:
        """From a sentence-transformers repository of the model hub or a folder."""
        forward = SentenceTransformersForward(source, revision, device, normalise=True)
        config = forward.model[0].auto_model.config
        description = _describe(name, ModelTask.EMBEDDING, forward, config, revision=revision)
        dimensions = forward.model.get_embedding_dimension()
        return cls(forward, description, dimensions, lanes, cache_bytes=cache_bytes)


def _prepared_torch(device: str) -> Any:
    """torch, on one thread, once it is known that the device works."""
    try:
        import torch
        from transformers.utils import logging
    except ModuleNotFoundError as error:
        raise ModelUnavailable('engine "torch" needs more packages: pip install "quintet[train]"') from error
    torch.set_num_threads(1)  # lanes are the parallelism
    logging.disable_progress_bar()
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelUnavailable(f'device "{device}" cannot be used by torch') from error
    return torch


def _truncated(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[bool]:
    """Whether each text has more tokens than are read. The lengths are counted apart: not every tokenizer tells."""
    return [len(ids) > max_tokens for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]


def _describe(
    name: str, task: ModelTask, forward: Any, config: Any, *, revision: str | None, labels: tuple[str, ...] = ()
) -> ModelDescription:
    """The description of a model without an artefact: the hub's commit for a version, the weights for a digest."""
    weights = forward.model.state_dict()
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].cpu().numpy().tobytes())
    return ModelDescription(
        identity=ModelIdentity(
            name, getattr(config, "_commit_hash", None) or revision or "local", f"sha256:{digest.hexdigest()}"
        ),
        task=task,
        engine="torch",
        labels=labels,
        max_input_tokens=forward.max_tokens,
        size_bytes=sum(weight.nbytes for weight in weights.values()),
    )
