"""A peer: LitServe with batches of 64 and its faster queue, one worker.

python -m tests.bench.baselines.lit text FOLDER PORT; FOLDER holds the same weights as the service's artefact. Or
price FILE PORT, with OMP_NUM_THREADS=1, its best setting. Both answer POST / once the worker is ready.
"""

import sys
from dataclasses import fields
from typing import Any

import litserve

from server.domain.pricing import House

_AT_ONCE = 64
_NAMES = [field.name for field in fields(House)]


class Texts(litserve.LitAPI):  # type: ignore[misc]  # its types are not read
    """Labels with their probabilities, by torch with its own threads."""

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(**options)
        self._folder = folder

    def setup(self, device: str) -> None:
        """In the worker."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(self._folder)
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(self._folder).eval()
        self._names = list(self._model.config.id2label.values())

    def decode_request(self, request: dict[str, str]) -> str:
        """A text."""
        return request["text"]

    def predict(self, texts: list[str]) -> list[dict[str, float]]:
        """Of a batch."""
        import torch

        with torch.inference_mode():
            inputs = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
            rows = self._model(**inputs).logits.softmax(-1).tolist()
        return [dict(zip(self._names, row, strict=True)) for row in rows]


class Prices(litserve.LitAPI):  # type: ignore[misc]
    """Prices by scikit-learn."""

    def __init__(self, file: str, **options: Any) -> None:
        super().__init__(**options)
        self._file = file

    def setup(self, device: str) -> None:
        """In the worker."""
        import joblib

        self._model: Any = joblib.load(self._file)

    def decode_request(self, request: dict[str, Any]) -> list[Any]:
        """A row."""
        return [request[name] for name in _NAMES]

    def predict(self, rows: list[list[Any]]) -> list[float]:
        """Of a batch."""
        import numpy as np

        prices: list[float] = np.exp(self._model.predict(np.array(rows, dtype=object))).tolist()
        return prices


def main(kind: str, path: str, port: str) -> None:
    """Serve until killed."""
    kinds: dict[str, Any] = {"text": Texts, "price": Prices}
    api = kinds[kind](path, max_batch_size=_AT_ONCE, batch_timeout=0.0, api_path="/")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
