"""Reading the metadata of GGUF files, which are written here value by value."""

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.errors import TrainingError
from training.gguf import read_metadata
from training.tokenizer import write_tokenizer


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


scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)
lists = st.lists(st.text(max_size=9)) | st.lists(st.integers(-9, 9)) | st.lists(st.lists(st.integers(0, 9)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=20), scalars | lists, max_size=6))
def test_what_is_written_is_read(tmp_path: Path, pairs: dict[str, Any]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(pairs))
    assert read_metadata(path) == pairs


@pytest.mark.parametrize(
    "content", [b"GGUF", b"nothing of the kind, but long enough", gguf({"a": "b"}, version=1), gguf({"a": "b"})[:-12]]
)
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(TrainingError, match=r"m.gguf is not a GGUF file"):
        read_metadata(tmp_path / "m.gguf")


def test_a_tokenizer_or_template_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path, target = tmp_path / "m.gguf", tmp_path / "tokenizer.json"
    known = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.token_type": [1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    path.write_bytes(gguf({**known, "tokenizer.ggml.pre": "new"}))
    with pytest.raises(TrainingError, match="of a kind that is not known here: new"):
        write_tokenizer(path, target)
    path.write_bytes(gguf(known))
    with pytest.raises(TrainingError, match="chat template"):
        write_tokenizer(path, target)
