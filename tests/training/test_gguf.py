"""Reading the metadata of GGUF files, which are written here value by value."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.training.gguf_files import CHATML, gguf, tiny_model
from training.errors import TrainingError
from training.recipes.gguf import read_metadata
from training.recipes.gguf_tokenizer import write_tokenizer

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


def test_the_tokenizer_and_the_frame_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(tiny_model())
    frame = write_tokenizer(tmp_path / "m.gguf", tmp_path / "tokenizer.json")
    assert frame["unless_system"] == "<|im_start|>system\nDo it.<|im_end|>\n"
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("ababb<|im_end|>a").tokens == ["ab", "ab", "b", "<|im_end|>", "a"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"tokenizer.ggml.pre": "new"}, "tokenizer is of a kind that is not known here: new"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer is of a kind"),
        ({"tokenizer.chat_template": CHATML.replace("im_end", "end")}, "chat template is of a kind"),
        ({"tokenizer.chat_template": "{{ messages[0].content }}"}, "chat template is of a kind"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, pairs: dict[str, str], message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(tiny_model(**pairs))
    with pytest.raises(TrainingError, match=message):
        write_tokenizer(tmp_path / "m.gguf", tmp_path / "tokenizer.json")
