"""Text models on onnxruntime and tokenizers, without torch: the default for serving on CPUs."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from server.engines.describe import describe, from_schema
from server.engines.interfaces import ModelTask
from server.engines.onnx_session import open_session
from server.engines.text_models import Outputs, TextClassifier, TextEmbedder
from server.runtime.artefact import Artefact
from server.runtime.lanes import Lanes

FILES = {"onnx": "model.onnx", "onnx-int8": "model-int8.onnx"}


class OnnxForward:
    """An artefact's graph with its tokenizer, on one thread."""

    # Texts of one turn on a lane; each is run by itself. The int8 graphs quantise activations over the whole batch, so
    # in padded batches a text's scores depend on its neighbours: in batches of 8, 3 of 128 labels changed. Measured on
    # two cores with MiniLM-L6, batches of 8 run 1.3 times as many texts of 12 tokens, and 0.8 times as many of 170.
    at_once = 4

    def __init__(self, artefact: Artefact, engine: str, output: str) -> None:
        self.max_tokens: int = from_schema(artefact, "max_tokens")
        self._tokenizer = Tokenizer.from_file(str(artefact.part("tokenizer.json")))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)
        self._session = open_session(artefact.part(FILES[engine]))
        self._has_types = "token_type_ids" in {item.name for item in self._session.get_inputs()}
        self._output = output

    def __call__(self, texts: Sequence[str]) -> Outputs:
        """Logits or vectors of one text at least."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        values = np.stack([self._run(encoding) for encoding in encodings])
        return Outputs(values, [bool(encoding.overflowing) for encoding in encodings])

    def _run(self, encoding: Encoding) -> NDArray[np.float32]:
        ids = np.array([encoding.ids], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if self._has_types:
            feed["token_type_ids"] = np.zeros_like(ids)  # one text, one segment
        return np.asarray(self._session.run([self._output], feed)[0][0], np.float32)


class OnnxClassifier(TextClassifier):
    """A Classifier from an artefact. `engine` is a key of FILES; None is what the manifest recommends.

    Raises ModelUnavailable if the artefact does not fit. Blocks: construct it on a thread.
    """

    def __init__(self, artefact: Artefact, lanes: Lanes, engine: str | None = None) -> None:
        engine = engine or str(from_schema(artefact, "engine"))
        forward = OnnxForward(artefact, engine, "logits")
        description = describe(
            artefact,
            ModelTask.CLASSIFICATION,
            engine,
            labels=from_schema(artefact, "labels"),
            max_input_tokens=forward.max_tokens,
        )
        super().__init__(forward, description, lanes)


class OnnxEmbedder(TextEmbedder):
    """An Embedder from an artefact; the rest as for OnnxClassifier."""

    def __init__(self, artefact: Artefact, lanes: Lanes, engine: str | None = None) -> None:
        engine = engine or str(from_schema(artefact, "engine"))
        forward = OnnxForward(artefact, engine, "embedding")
        description = describe(artefact, ModelTask.EMBEDDING, engine, max_input_tokens=forward.max_tokens)
        super().__init__(forward, description, from_schema(artefact, "dimensions"), lanes)
