"""Language identification: fastText's lid.176 in its compressed form, measured on Wikipedia. Nothing is trained.

Accuracy is counted on the first N characters of 2,000 articles each in English, French and Spanish.
"""

import json
from pathlib import Path

import fasttext

from training.recipe import Outcome, Workshop
from training.reports.report import write_report

LANGUAGES = {"en": "summaries_en-us.json", "fr": "summaries_fr-fr.json", "es": "summaries_es-es.json"}
ARTICLES = 2000
LENGTHS = (20, 50, 200)
TEXT = """
lid.176.ftz by fastText, unchanged: 176 languages. Measured here on the beginnings of Wikipedia articles in English,
French and Spanish. Texts of a few words are often ambiguous: treat low scores as "unknown".
"""


def build(workshop: Workshop) -> Outcome:
    """Put the file in place and measure it."""
    for path, source in workshop.input("lid.176").items():
        workshop.place(source, path)
    model = fasttext.load_model(str(workshop.folder / "lid.176.ftz"))
    leads = workshop.input("wikipedia-leads")
    texts = {language: _beginnings(leads[file]) for language, file in LANGUAGES.items()}
    metrics = {}
    for length in LENGTHS:
        right = [
            model.predict(text[:length].replace("\n", " "))[0][0] == f"__label__{language}"
            for language, group in texts.items()
            for text in group
        ]
        metrics[f"accuracy_{length}_characters"] = sum(right) / len(right)
    write_report(workshop.folder, "lid.176", TEXT, metrics)
    return Outcome({"task": "language_id"}, metrics)


def _beginnings(path: Path) -> list[str]:
    articles = json.loads(path.read_text(encoding="utf-8")).values()
    return [article["extract"] for article in articles if len(article["extract"]) >= max(LENGTHS)][:ARTICLES]
