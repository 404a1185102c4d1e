"""Text models on onnxruntime and tokenizers, without torch: the default for serving on CPUs."""

from collections.abc import Sequence
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from server.domain.models import ModelTask
from server.inference.onnx_session import open_session
from server.inference.queue import UNBATCHED, BatchPolicy
from server.inference.scheduler import Scheduler
from server.inference.text import Outputs, TextClassifier, TextEmbedder, text_cost
from server.models.artefact import Artefact
from server.models.describe import describe, from_schema

FILES = {"onnx": "model.onnx", "onnx-int8": "model-int8.onnx"}


_SHORT_TOKENS = 32
# Times as many texts a second in a batch as alone, all of one length, with MiniLM-L6 on one of two cores (medians of
# five rounds with AVX2, in fp32; of nine rounds with AVX-512 and VNNI, in both, of 16, 30, 58 and 114 tokens):
#
#           AVX2, fp32, batches of 2, 4, 8, 16     AVX-512: fp32, 4 and 8     int8 by rows, 4 and 8
#       8 tokens      1.4  1.7  1.9  2.2
#      16 tokens      1.2  1.3  1.5  1.5                 1.7  2.0                 1.1  1.2
#      32 tokens      1.0  1.2  1.2  1.2                 1.5  1.6                 1.1  1.2
#      64 tokens      1.0  1.2  1.2  1.1                 1.3  1.3                 1.1  1.1
#     128 tokens      1.1  1.0  1.0  1.0                 1.1                      1.1
#     256 tokens      1.0  1.0  0.9  0.8
#
# So short texts are gathered as they wait, and waiting for more would cost latency for nothing. An int8 graph whose
# activations have one scale, as onnxruntime's own quantisation makes them, is another matter: the scale spans the
# batch, and a text's scores depend on its neighbours (in batches of 8, 3 of 128 labels changed), which is no answer to
# give. Unless the schema says that every row has a scale, such a graph runs every text alone.
_GATHERING = BatchPolicy(8, text_cost(4 * _SHORT_TOKENS))


def _gathering(artefact: Artefact, engine: str) -> BatchPolicy:
    by_row = artefact.manifest.schema.get("int8_scales") == "row"
    return UNBATCHED if engine == "onnx-int8" and not by_row else _GATHERING


class OnnxForward:
    """An artefact's graph with its tokenizer, on the calling thread.

    Tokenising takes 0.03 ms for a short text and 5 ms for 10,000 characters, so it is done here and not on the loop.
    """

    def __init__(self, artefact: Artefact, engine: str, output: str) -> None:
        self.gathering = _gathering(artefact, engine)
        self.max_tokens: int = from_schema(artefact, "max_tokens")
        self._tokenizer = _tokenizer(artefact, self.max_tokens)
        self._session = open_session(artefact.part(FILES[engine]))
        self._has_types = "token_type_ids" in {item.name for item in self._session.get_inputs()}
        self._output = output

    def __call__(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> Outputs:
        """Logits or vectors of one text at least, or of one pair of texts."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        truncated = [bool(encoding.overflowing) for encoding in encodings]
        longest = max(len(encoding) for encoding in encodings)
        if self.gathering.at_once > 1 and longest <= _SHORT_TOKENS:
            return Outputs(self._run(encodings), truncated)
        return Outputs(np.concatenate([self._run([one]) for one in encodings]), truncated)

    def _run(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        """Values [texts, width], the texts padded to the longest of them."""
        ids = np.zeros((len(encodings), max(len(encoding) for encoding in encodings)), np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding)] = encoding.ids
            mask[row, : len(encoding)] = 1
            if self._has_types:
                types[row, : len(encoding)] = encoding.type_ids
        feed = {"input_ids": ids, "attention_mask": mask}
        if self._has_types:
            feed["token_type_ids"] = types
        return np.asarray(self._session.run([self._output], feed)[0], np.float32)


# By the file's digest and the length at which texts are cut. Reading one holds the GIL for 50 ms, in which nobody is
# served, and it weighs 10 MB. Models that were made of one base have the same, and so have versions of a model.
_tokenizers: WeakValueDictionary[tuple[str, int], Tokenizer] = WeakValueDictionary()


def _tokenizer(artefact: Artefact, max_tokens: int) -> Tokenizer:
    """The artefact's tokenizer, which it shares with all that use the same."""
    path = artefact.part("tokenizer.json")
    key = artefact.manifest.files[path.name].sha256, max_tokens
    found = _tokenizers.get(key)
    if found is None:
        found = Tokenizer.from_file(str(path))
        found.no_padding()
        found.enable_truncation(max_tokens)
        _tokenizers[key] = found
    return found


class OnnxClassifier(TextClassifier):
    """A Classifier from an artefact. `engine` is a key of FILES; None is what the manifest recommends.

    Raises ModelUnavailable if the artefact does not fit. Blocks: construct it on a thread.
    """

    def __init__(
        self, artefact: Artefact, lanes: Scheduler, engine: str | None = None, *, cache_bytes: int = 0
    ) -> None:
        engine = engine or str(from_schema(artefact, "engine"))
        forward = OnnxForward(artefact, engine, "logits")
        description = describe(
            artefact,
            ModelTask.CLASSIFICATION,
            engine,
            labels=from_schema(artefact, "labels"),
            max_input_tokens=forward.max_tokens,
        )
        super().__init__(forward, description, lanes, cache_bytes=cache_bytes)


class OnnxEmbedder(TextEmbedder):
    """An Embedder from an artefact; the rest as for OnnxClassifier."""

    def __init__(
        self, artefact: Artefact, lanes: Scheduler, engine: str | None = None, *, cache_bytes: int = 0
    ) -> None:
        engine = engine or str(from_schema(artefact, "engine"))
        forward = OnnxForward(artefact, engine, "embedding")
        description = describe(artefact, ModelTask.EMBEDDING, engine, max_input_tokens=forward.max_tokens)
        dimensions = from_schema(artefact, "dimensions")
        super().__init__(forward, description, dimensions, lanes, cache_bytes=cache_bytes)
