"""The tokenizer of a language model, from its GGUF file, so that prompts can be counted without asking the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from training.errors import TrainingError
from training.recipes.gguf import read_metadata

# Where text is cut before pairs are merged, by the name that the file gives; the last step is that of all of GPT-2's
# kind. Order matters: each step cuts what the one before it left.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CUTS: Mapping[str, Sequence[str]] = {
    "qwen2": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ],
    "smollm": [r"\p{N}", _WORDS],
}
_CONTROL, _USER_DEFINED = 3, 4
# ChatML, which both models use; `unless_system` stands before conversations without instructions.
_FRAME = {"before": "<|im_start|>{role}\n", "after": "<|im_end|>\n", "answer": "<|im_start|>assistant\n"}
Turn = tuple[str, str]  # role and content
_CONVERSATIONS: Sequence[Sequence[Turn]] = (
    [("user", "a")],
    [("user", " a \n"), ("assistant", "b"), ("user", "\nc")],
    [("system", "s"), ("user", "a")],
    [("system", ""), ("user", "a"), ("assistant", "b"), ("user", "c")],
)


def write_tokenizer(model: Path, target: Path) -> dict[str, str]:
    """Write the tokenizer of a GGUF file, and return the words around the turns of a conversation.

    Raises TrainingError if the file has a tokenizer or a chat template of another kind.
    """
    metadata = read_metadata(model)
    _tokenizer(metadata).save(str(target), pretty=False)
    return _frame(metadata["tokenizer.chat_template"])


def _tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    name = str(metadata.get("tokenizer.ggml.pre"))
    if metadata.get("tokenizer.ggml.model") != "gpt2" or name not in _CUTS:
        raise TrainingError(f"the model's tokenizer is of a kind that is not known here: {name}")
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    cuts: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in _CUTS[name]]
    tokenizer.pre_tokenizer = Steps([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])
    for add, wanted in ((tokenizer.add_special_tokens, _CONTROL), (tokenizer.add_tokens, _USER_DEFINED)):
        add([AddedToken(token, normalized=False) for token, kind in zip(tokens, kinds, strict=True) if kind == wanted])
    return tokenizer


def _frame(template: str) -> dict[str, str]:
    compiled = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def rendered(turns: Sequence[Turn]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return compiled.render(messages=messages, add_generation_prompt=True)

    without_system = rendered([("user", "a")])
    frame = {**_FRAME, "unless_system": without_system[: without_system.rfind("<|im_start|>user")]}
    for turns in _CONVERSATIONS:
        said = "".join(frame["before"].format(role=role) + content + frame["after"] for role, content in turns)
        start = "" if turns[0][0] == "system" else frame["unless_system"]
        if rendered(turns) != start + said + frame["answer"]:
            raise TrainingError("the model's chat template is of a kind that is not known here")
    return frame
