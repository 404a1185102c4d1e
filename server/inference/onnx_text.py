"""Text models on onnxruntime and tokenizers, without torch: the default for serving on CPUs."""

from bisect import bisect_left
from collections.abc import Sequence
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from server.domain.models import ModelTask
from server.inference.computation import UNBATCHED, BatchPolicy
from server.inference.onnx_session import open_session
from server.inference.text import Outputs, TextModel, describe_text_model, text_cost, unknown_share
from server.models.artefact import Artefact

FILES = {"onnx": "model.onnx", "onnx-int8": "model-int8.onnx"}  # by engine
# Attributes of an Encoding by the graph's inputs.
_INPUTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}

# Short texts gain from batches, long ones do not: docs/notes/batching.md.
_SHORT_TOKENS = 32
_BATCHED = BatchPolicy(8, text_cost(4 * _SHORT_TOKENS))


def load(artefact: Artefact, task: ModelTask, engine: str | None = None) -> TextModel:
    """A classifier's or an embedder's model. `engine` is a key of FILES; None is what the manifest recommends.

    Raises ModelUnavailable if the artefact does not fit.
    """
    engine = engine or str(artefact.schema("engine"))
    forward = OnnxForward(artefact, engine, "embedding" if task is ModelTask.EMBEDDING else "logits")
    description, width = describe_text_model(artefact, task, engine, forward.max_tokens)
    return TextModel(description, forward, width, forward.batch_policy)


class OnnxForward:
    """An artefact's graph with its tokenizer, on the calling thread.

    It tokenizes, too: that takes 0.03 ms for a short text and 5 ms for 10,000 characters, too long for the event loop.
    """

    def __init__(self, artefact: Artefact, engine: str, output: str) -> None:
        # A graph in int8 with one scale for all activations is not batched: the scale spans the batch, so that a text's
        # scores would depend on its neighbours (3 of 128 labels changed in batches of 8).
        by_row = artefact.manifest.schema.get("int8_scales") == "row"
        self.batch_policy = UNBATCHED if engine == "onnx-int8" and not by_row else _BATCHED
        self._session = open_session(artefact.part(FILES[engine]))
        self._inputs = [item.name for item in self._session.get_inputs()]
        self._output = output
        most: int = artefact.schema("max_tokens")
        self.max_tokens = self._longest(_tokenizer(artefact, most), most)
        self._tokenizer = _tokenizer(artefact, self.max_tokens)
        self._unknown = _unknown_id(self._tokenizer)
        self._special = self._tokenizer.num_special_tokens_to_add(False)

    def __call__(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> Outputs:
        """Logits or vectors of one text at least, or of one pair of texts."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        truncated = [bool(encoding.overflowing) for encoding in encodings]
        unknown = [unknown_share(encoding.ids, self._unknown, self._special) for encoding in encodings]
        longest = max(len(encoding) for encoding in encodings)
        if self.batch_policy.max_items > 1 and longest <= _SHORT_TOKENS:
            return Outputs(self._run(encodings), truncated, unknown)
        return Outputs(np.concatenate([self._run([one]) for one in encodings]), truncated, unknown)

    def _longest(self, tokenizer: Tokenizer, most: int) -> int:
        """The longest input that the graph reads, in tokens: it may have fewer positions than the manifest says."""
        word = tokenizer.encode("a", add_special_tokens=False).ids[:1] or [0]  # padding may have no position
        values = {"input_ids": word[0], "attention_mask": 1}

        def is_too_long(length: int) -> bool:
            feed = {name: np.full((1, length), values.get(name, 0), np.int64) for name in self._inputs}
            try:
                self._session.run([self._output], feed)
            except Exception:  # of any kind that onnxruntime raises
                return True
            return False

        if not is_too_long(most):
            return most
        return bisect_left(range(1, most), True, key=is_too_long) or most  # if it reads nothing, the first call tells

    def _run(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        """Values [texts, width], the texts padded to the longest of them."""
        shape = len(encodings), max(len(encoding) for encoding in encodings)
        feed = {name: np.zeros(shape, np.int64) for name in self._inputs}
        for row, encoding in enumerate(encodings):
            for name, values in feed.items():
                values[row, : len(encoding)] = getattr(encoding, _INPUTS[name])
        return np.asarray(self._session.run([self._output], feed)[0], np.float32)


# By the file's digest and the length at which texts are cut. Reading one holds the GIL for 50 ms and takes 10 MB, and
# models with the same base and versions of a model have the same.
_tokenizers: WeakValueDictionary[tuple[str, int], Tokenizer] = WeakValueDictionary()


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the token for what the vocabulary lacks. Tokenizers of bytes have none."""
    # Unigram models do not tell its name; it is "<unk>" in all that are published.
    name = getattr(tokenizer.model, "unk_token", None) or "<unk>"
    return tokenizer.token_to_id(name)


def _tokenizer(artefact: Artefact, max_tokens: int) -> Tokenizer:
    """The artefact's tokenizer, shared with the models that have the same."""
    path = artefact.part("tokenizer.json")
    key = artefact.manifest.files[path.name].sha256, max_tokens
    found = _tokenizers.get(key)
    if found is None:
        found = Tokenizer.from_file(str(path))
        found.no_padding()
        found.enable_truncation(max_tokens)
        _tokenizers[key] = found
    return found
