"""The embedded language models: GGUF files, as their authors quantised them. Nothing is trained."""

from training.recipe import Outcome, Workshop
from training.recipes.gguf_tokenizer import write_tokenizer
from training.reports.report import write_report

TEXT = """
A language model in GGUF format for llama.cpp, byte for byte the file that its authors (or, for SmolLM2, the
quantiser named in LICENCE.txt) published: its SHA-256 is that of the lock file. It is run in a child process and
spoken to in the OpenAI protocol. Answers about passages are checked by the service, not trusted.

`tokenizer.json` is made from the vocabulary in that file, and counts prompts before the model is asked.
"""


def build(workshop: Workshop) -> Outcome:
    """Put the file in place, and its tokenizer beside it."""
    for path, source in workshop.input(workshop.label).items():
        workshop.place(source, path)
    frame = write_tokenizer(workshop.folder / "model.gguf", workshop.folder / "tokenizer.json")
    write_report(workshop.folder, workshop.label, TEXT, {})
    return Outcome(schema={"task": "chat", "frame": frame})
