"""A language model of five tokens and no weights, as a GGUF file."""

import tempfile
from pathlib import Path
from typing import Any

from gguf import GGUFWriter

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nDo it.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}"
    "<|im_start|>assistant{{ '\n' }}"
)


def tiny_model(**others: Any) -> bytes:
    """The file's content; `others` replace its metadata."""
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<|im_start|>", "<|im_end|>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3, 3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.chat_template": CHATML,
    }
    with tempfile.TemporaryDirectory() as folder:
        writer = GGUFWriter(Path(folder) / "model.gguf", arch="qwen2")
        for name, value in (metadata | others).items():
            (writer.add_string if isinstance(value, str) else writer.add_array)(name, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return (Path(folder) / "model.gguf").read_bytes()
