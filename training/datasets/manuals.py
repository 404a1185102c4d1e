"""Questions about small manuals: our own texts, in eight languages, that confuse on purpose.

Manuals of one collection describe like products, tables have rows and columns that are easily mixed up, and for every
fourth question there is no answer. The halves are other collections, so that what is learned on one is tested on the
other.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from server.domain.rag import Document

FOLDER = Path(__file__).parent / "manuals"
HALVES = ("development", "held-out")
DIGEST = "02d59d11c5a43f54d070bf9b5038925558154fbd9d096da5d4a1e4f9d82713f8"


class Question(NamedTuple):
    """A question to a collection. `right` is a pattern that right answers have, None if there is none; `wrong` is an
    answer that is confused easily.
    """

    half: str
    collection: str
    question: str
    right: str | None
    wrong: str


def read_questions() -> list[Question]:
    """All questions, those of a collection one after the other."""
    lines = (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [Question(**json.loads(line)) for line in lines]


def read_collections() -> dict[str, list[Document]]:
    """The documents of each collection; the first heading is the title."""
    found: dict[str, list[Document]] = {}
    for path in sorted(FOLDER.glob("*/*.md")):
        text = path.read_text(encoding="utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        found.setdefault(path.parent.name, []).append(Document(path.name, text, title))
    return found


def digest() -> str:
    """SHA-256 of all files. DIGEST is in the code, so that a recipe that depends on it is built again."""
    files = sorted(path for path in FOLDER.rglob("*") if path.is_file())
    content = b"\0".join(part for path in files for part in (path.name.encode(), path.read_bytes()))
    return hashlib.sha256(content).hexdigest()
