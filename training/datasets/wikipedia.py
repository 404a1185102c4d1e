"""The first paragraphs of Wikipedia's vital articles."""

import json
from dataclasses import dataclass
from pathlib import Path

ENGLISH, FRENCH, SPANISH = "summaries_en-us.json", "summaries_fr-fr.json", "summaries_es-es.json"
UNCATEGORISED = "Uncategorized"  # missing from the category tree, not a topic


@dataclass(frozen=True)
class Article:
    """An article's title, its first paragraph, and its topic among Wikipedia's eleven groups of vital articles."""

    title: str
    text: str
    topic: str


def read_articles(path: Path) -> list[Article]:
    """All articles that have a text, in the file's order."""
    articles = json.loads(path.read_text(encoding="utf-8")).values()
    return [Article(entry["title"], entry["extract"], entry["topic"]) for entry in articles if entry["extract"].strip()]
