"""The embedded language models: GGUF files, as their authors quantised them. Nothing is trained."""

from training.recipe import Outcome, Workshop
from training.report import write_report

TEXT = """
A language model in GGUF format for llama.cpp, byte for byte the file that its authors (or, for SmolLM2, the
quantiser named in LICENCE.txt) published: its SHA-256 is that of the lock file. It is run in a child process and
spoken to in the OpenAI protocol. Answers about passages are checked by the service, not trusted.
"""


def build(workshop: Workshop) -> Outcome:
    """Put the file in place."""
    for path, source in workshop.input(workshop.label).items():
        workshop.place(source, path)
    write_report(workshop.folder, workshop.label, TEXT, {})
    return Outcome(schema={"task": "chat"})
