"""Text models on torch: an artefact's own folder, or any safetensors model of a hub, on any device.

An option for GPUs and for models without an ONNX file. torch, transformers and sentence-transformers are imported when
the first model is read. Code that comes with a model is never run (trust_remote_code=False).
"""

import hashlib
import math
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from server.domain.errors import ModelUnavailable
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.inference.computation import BatchPolicy
from server.inference.text import Outputs, TextModel, describe_text_model, unknown_share
from server.models.artefact import Artefact

MAX_TOKENS = 512  # for hub models; attention costs the square, and most are trained on no more
_POSITIONS = re.compile("^(wpe|pos(ition)?(al)?_embed.*|embed_pos.*)$")  # names of modules with a row a position
_BATCHED = BatchPolicy(8, math.inf)  # batches of 4 to 8 are fastest on CPUs, and a GPU needs several texts


def load(artefact: Artefact, task: ModelTask, device: str = "cpu") -> TextModel:
    """A classifier's or an embedder's model, from the torch/ folder of an artefact.

    Raises ModelUnavailable if the device cannot be used or the model does not fit.
    """
    kinds = {"transformers": _transformers, "sentence-transformers": _sentence_transformers}
    kind = kinds[artefact.schema("torch")] if task is ModelTask.CLASSIFICATION else _normalised
    forward = kind(str(artefact.part("torch")), None, device, artefact.schema("max_tokens"))
    description, width = describe_text_model(artefact, task, "torch", forward.max_tokens)
    return TextModel(description, forward, width, _BATCHED)


def load_from_hub(name: str, source: str, revision: str | None, task: ModelTask, device: str = "cpu") -> TextModel:
    """The same from a repository of the model hub or a folder. Labels are those of the model's configuration.

    Its version is the hub's commit, its digest that of the weights. An embedder needs sentence-transformers' format.
    """
    if task is ModelTask.EMBEDDING:
        forward = _normalised(source, revision, device, MAX_TOKENS)
        config = forward.model[0].auto_model.config
        labels: tuple[str, ...] = ()
        width = forward.model.get_embedding_dimension()
    else:
        forward = _transformers(source, revision, device, MAX_TOKENS)
        config = forward.model.config
        labels = tuple(str(label) for _, label in sorted(config.id2label.items()))
        width = len(labels)
        if width < 2 or config.problem_type not in {None, "single_label_classification"}:
            raise ModelUnavailable(f'model "{name}" does not choose one of several labels', metadata={"model": name})
    weights = forward.model.state_dict()
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].cpu().numpy().tobytes())
    version = getattr(config, "_commit_hash", None) or revision or "local"
    description = ModelDescription(
        identity=ModelIdentity(name, version, f"sha256:{digest.hexdigest()}"),
        task=task,
        engine="torch",
        labels=labels,
        max_input_tokens=forward.max_tokens,
        size_bytes=sum(weight.nbytes for weight in weights.values()),
    )
    return TextModel(description, forward, width, _BATCHED)


@dataclass(eq=False, repr=False)
class TorchForward:
    """A model with its tokenizer, on the calling thread.

    `preprocess` makes tensors of texts, at most `max_tokens` long; `run` makes values [texts, width] of tensors.
    """

    model: Any
    tokenizer: Any
    preprocess: Callable[[list[str]], Any]
    run: Callable[[dict[str, Any]], Any]
    max_tokens: int
    # A tokenizer keeps its settings for padding and truncation in itself.
    tokenizing: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, texts: Sequence[str]) -> Outputs:
        """Logits or vectors of one text at least."""
        import torch

        with self.tokenizing:
            batch = self.preprocess(list(texts))
            # Counted apart, because not every tokenizer tells whether it truncated.
            ids = self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        device = self.model.device
        on_device = {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}
        with torch.inference_mode():
            values = self.run(on_device)
        unknown, special = self.tokenizer.unk_token_id, self.tokenizer.num_special_tokens_to_add()
        shares = [unknown_share(each, unknown, special) for each in ids]
        return Outputs(values.cpu().numpy(), [len(each) > self.max_tokens for each in ids], shares)


def _transformers(source: str, revision: str | None, device: str, max_tokens: int) -> TorchForward:
    """AutoModelForSequenceClassification: texts to logits."""
    torch = _prepared_torch(device)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(
        source, use_safetensors=True, dtype=torch.float32, **options
    )
    model = loaded.to(device).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
    max_tokens = min(max_tokens, tokenizer.model_max_length, positions(model, model.config))
    preprocess = partial(tokenizer, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    return TorchForward(model, tokenizer, preprocess, lambda batch: model(**batch).logits, max_tokens)


def _sentence_transformers(
    source: str, revision: str | None, device: str, max_tokens: int, *, normalise: bool = False
) -> TorchForward:
    """SentenceTransformer: texts to what its last module gives, a vector or the logits of a Dense head."""
    torch = _prepared_torch(device)
    from sentence_transformers import SentenceTransformer

    weights = {"use_safetensors": True, "dtype": torch.float32}
    model: Any = SentenceTransformer(
        source, revision=revision, device=device, trust_remote_code=False, model_kwargs=weights
    ).eval()
    limit = positions(model, getattr(getattr(model[0], "auto_model", None), "config", None))
    model.max_seq_length = max_tokens = min(max_tokens, model.max_seq_length or max_tokens, limit)

    def run(batch: dict[str, Any]) -> Any:
        values = model(batch)["sentence_embedding"]
        return torch.nn.functional.normalize(values, dim=1) if normalise else values

    return TorchForward(model, model.tokenizer, model.preprocess, run, max_tokens)


_normalised = partial(_sentence_transformers, normalise=True)


def positions(model: Any, config: Any) -> int:
    """The longest input that a model has positions for, in tokens: a longer one is an index out of range.

    Its configuration does not always tell: RoBERTa and its kind keep the first positions for padding.
    """
    import torch

    limits = [getattr(config, "max_position_embeddings", None) or 0]
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and _POSITIONS.search(name.rpartition(".")[2]):
            reserved = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - reserved)
    return min((limit for limit in limits if limit > 0), default=MAX_TOKENS)


def _prepared_torch(device: str) -> Any:
    """Torch with one thread. Raises ModelUnavailable if it is not installed or the device cannot be used."""
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
