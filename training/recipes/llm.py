"""The embedded language models: GGUF files, as their authors quantised them. Nothing is trained.

The tokenizer of the file is written as tokenizer.json, and the text that its chat template puts around messages goes
into the schema, so that the server can count a prompt's tokens without the model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from training.errors import TrainingError
from training.recipe import Outcome, Workspace
from training.report import write_report

# How text is split before pairs are merged, by the name that the file gives. Each step splits the pieces of the step
# before it; the byte-level step that all tokenizers of GPT-2's kind share is added at the end.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPLITS: Mapping[str, Sequence[str]] = {
    "qwen2": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ],
    "smollm": [r"\p{N}", _WORDS],
}
_CONTROL, _USER_DEFINED = 3, 4  # token types
# ChatML, which both models use. `unless_system` comes before conversations without a system message.
_FRAME = {"before": "<|im_start|>{role}\n", "after": "<|im_end|>\n", "answer": "<|im_start|>assistant\n"}
Turn = tuple[str, str]  # role and content
_CONVERSATIONS: Sequence[Sequence[Turn]] = (
    [("user", "a")],
    [("user", " a \n"), ("assistant", "b"), ("user", "\nc")],
    [("system", "s"), ("user", "a")],
    [("system", ""), ("user", "a"), ("assistant", "b"), ("user", "c")],
)
TEXT = """
A language model in GGUF format for llama.cpp, byte for byte the file that its authors (or, for SmolLM2, the
quantiser named in LICENCE.txt) published: its SHA-256 is that of the lock file. It runs in a child process with the
OpenAI protocol. The service checks answers about passages.

`tokenizer.json` is made from the vocabulary in that file, and counts prompts before the model is called.
"""


def build(workspace: Workspace) -> Outcome:
    """Link the file, and write its tokenizer."""
    for path, source in workspace.input(workspace.name).items():
        workspace.link(source, path)
    frame = write_tokenizer(workspace.folder / "model.gguf", workspace.folder / "tokenizer.json")
    write_report(workspace.folder, workspace.name, TEXT, {})
    return Outcome(schema={"task": "chat", "frame": frame})


def write_tokenizer(model: Path, target: Path) -> dict[str, str]:
    """Write the tokenizer of a GGUF file; return the text around the messages of a conversation.

    Raises TrainingError if the file is damaged, or its tokenizer or chat template is not supported.
    """
    try:
        metadata = {name: field.contents() for name, field in GGUFReader(model).fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise TrainingError(f"{model.name} is not a GGUF file of version 2 or 3") from error
    _tokenizer(metadata).save(str(target), pretty=False)
    return _frame(metadata["tokenizer.chat_template"])


def _tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    name = str(metadata.get("tokenizer.ggml.pre"))
    if metadata.get("tokenizer.ggml.model") != "gpt2" or name not in _SPLITS:
        raise TrainingError(f"the model's tokenizer is not supported: {name}")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    splits: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in _SPLITS[name]]
    tokenizer.pre_tokenizer = Steps([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
    for add, wanted in ((tokenizer.add_special_tokens, _CONTROL), (tokenizer.add_tokens, _USER_DEFINED)):
        add([AddedToken(token, normalized=False) for token, kind in zip(tokens, types, strict=True) if kind == wanted])
    return tokenizer


def _frame(template: str) -> dict[str, str]:
    """The text around messages, checked against what the template renders for several conversations."""
    compiled = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def rendered(turns: Sequence[Turn]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return compiled.render(messages=messages, add_generation_prompt=True)

    without_system = rendered([("user", "a")])
    frame = {**_FRAME, "unless_system": without_system[: without_system.rfind("<|im_start|>user")]}
    for turns in _CONVERSATIONS:
        framed = "".join(frame["before"].format(role=role) + content + frame["after"] for role, content in turns)
        start = "" if turns[0][0] == "system" else frame["unless_system"]
        if rendered(turns) != start + framed + frame["answer"]:
            raise TrainingError("the model's chat template is not supported")
    return frame
