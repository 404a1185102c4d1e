"""spaCy's English pipeline: tokens, tags, lemmas, parse, entities. Nothing is trained."""

import json

import spacy

from training.errors import WrongContent
from training.recipe import Outcome, Workspace
from training.report import write_report

PROBE = "Tim Cook presented Apple's new laptop in California on Monday."
EXPECTED = {("Tim Cook", "PERSON"), ("Apple", "ORG"), ("California", "GPE"), ("Monday", "DATE")}
TEXT = """
en_core_web_sm 3.8.0 by Explosion, unchanged. The metrics are those that its authors measured on OntoNotes 5 and
publish in its meta.json; they are not measured again here. It was loaded, and found four entities in a sentence.
"""


def build(workspace: Workspace) -> Outcome:
    """Link the files and check that the pipeline works."""
    for path, source in workspace.input("en-core-web-sm").items():
        workspace.link(source, f"pipeline/{path}")
    nlp = spacy.load(workspace.folder / "pipeline")
    found = {(entity.text, entity.label_) for entity in nlp(PROBE).ents}
    if found != EXPECTED:
        raise WrongContent(f"en_core_web_sm finds {sorted(found)} in the probe, expected {sorted(EXPECTED)}")
    performance = json.loads((workspace.folder / "pipeline" / "meta.json").read_text(encoding="utf-8"))["performance"]
    metrics = {
        "published_entity_f1": performance["ents_f"],
        "published_tag_accuracy": performance["tag_acc"],
        "published_parse_labelled": performance["dep_las"],
    }
    write_report(workspace.folder, "en_core_web_sm", TEXT, metrics)
    return Outcome({"task": "linguistics"}, metrics)
