"""Language identification: fastText's lid.176 in its compressed form, measured on Wikipedia. Nothing is trained.

Accuracy is measured on the first N characters of 2,000 articles each in English, French and Spanish.
"""

import fasttext

from training.datasets.wikipedia import ENGLISH, FRENCH, SPANISH, read_articles
from training.recipe import Outcome, Workspace
from training.report import write_report

LANGUAGES = {"en": ENGLISH, "fr": FRENCH, "es": SPANISH}
ARTICLES = 2000
LENGTHS = (20, 50, 200)
TEXT = """
lid.176.ftz by fastText, unchanged: 176 languages. Measured here on the beginnings of Wikipedia articles in English,
French and Spanish. Texts of a few words are often ambiguous: treat low scores as "unknown".
"""


def build(workspace: Workspace) -> Outcome:
    """Link the file and measure it."""
    for path, source in workspace.input("lid.176").items():
        workspace.link(source, path)
    model = fasttext.load_model(str(workspace.folder / "lid.176.ftz"))
    files = workspace.input("wikipedia-leads")
    texts = {}
    for language, file in LANGUAGES.items():
        long = [article.text for article in read_articles(files[file]) if len(article.text) >= max(LENGTHS)]
        texts[language] = long[:ARTICLES]
    metrics = {}
    for length in LENGTHS:
        right = [
            model.predict(text[:length].replace("\n", " "))[0][0] == f"__label__{language}"
            for language, group in texts.items()
            for text in group
        ]
        metrics[f"accuracy_{length}_characters"] = sum(right) / len(right)
    write_report(workspace.folder, "lid.176", TEXT, metrics)
    return Outcome({"task": "language_id"}, metrics)
