"""The tokenizer and the chat template of a language model, from its GGUF file."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from server.tasks.chat.tokens import TokenizerCounter
from tests.training.tiny_llm import CHATML, tiny_model
from training.errors import TrainingError
from training.recipes.llm import write_tokenizer


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF",
        b"nothing of the kind, but long enough",
        tiny_model()[:4] + b"\x01" + tiny_model()[5:],  # version 1
        tiny_model()[:200],
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(TrainingError, match=r"m.gguf is not a GGUF file"):
        write_tokenizer(tmp_path / "m.gguf", tmp_path / "tokenizer.json")


def test_the_tokenizer_and_the_frame_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(tiny_model())
    frame = write_tokenizer(tmp_path / "m.gguf", tmp_path / "tokenizer.json")
    assert frame["unless_system"] == "<|im_start|>system\nDo it.<|im_end|>\n"
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("ababb<|im_end|>a").tokens == ["ab", "ab", "b", "<|im_end|>", "a"]


def test_the_vocabulary_says_which_tokens_control_the_model(tmp_path: Path) -> None:
    tokens = ["a", "b", "ab", "<|im_start|>", "<|im_end|>", "<tool_call>", "[PAD1]"]
    kinds = [1, 1, 1, 3, 3, 4, 5]  # normal, control, defined by the authors, unused
    (tmp_path / "m.gguf").write_bytes(
        tiny_model(**{"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds})
    )
    write_tokenizer(tmp_path / "m.gguf", tmp_path / "tokenizer.json")
    assert [*TokenizerCounter(tmp_path / "tokenizer.json").control_tokens] == tokens[3:6]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"tokenizer.ggml.pre": "new"}, "tokenizer is not supported: new"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer is not supported"),
        ({"tokenizer.chat_template": CHATML.replace("im_end", "end")}, "chat template is not supported"),
        ({"tokenizer.chat_template": "{{ messages[0].content }}"}, "chat template is not supported"),
    ],
)
def test_unsupported_models_are_refused(tmp_path: Path, pairs: dict[str, str], message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(tiny_model(**pairs))
    with pytest.raises(TrainingError, match=message):
        write_tokenizer(tmp_path / "m.gguf", tmp_path / "tokenizer.json")
