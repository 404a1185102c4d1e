"""GGUF files, written value by value."""

import struct
from typing import Any

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nDo it.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}"
    "<|im_start|>assistant{{ '\n' }}"
)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(what: Any) -> bytes:
    """With its type before it: bool, int (64 bits), float, text, or a list of one of those."""
    kind, content = _encoded(what)
    return struct.pack("<I", kind) + content


def _encoded(what: Any) -> tuple[int, bytes]:
    match what:
        case bool():
            return 7, struct.pack("<?", what)
        case int():
            return 11, struct.pack("<q", what)
        case float():
            return 12, struct.pack("<d", what)
        case str():
            return 8, text(what)
    items = [_encoded(item) for item in what]
    kind = items[0][0] if items else 11
    return 9, struct.pack("<IQ", kind, len(items)) + b"".join(content for _, content in items)


def gguf(pairs: dict[str, Any], version: int = 3) -> bytes:
    head = struct.pack("<4sIQQ", b"GGUF", version, 0, len(pairs))
    return head + b"".join(text(key) + value(what) for key, what in pairs.items()) + b"tensors"


def tiny_model(**others: Any) -> bytes:
    """A language model of five tokens and no weights; `others` replace its metadata."""
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<|im_start|>", "<|im_end|>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3, 3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.chat_template": CHATML,
    }
    return gguf(metadata | others)
