"""The reranker: ms-marco-MiniLM-L12-v2 as an 8-bit ONNX graph. Nothing is trained."""

from server.inference.reranker import OUTPUT
from training.errors import WrongContent
from training.graphs.evaluate import run_graph
from training.recipe import Outcome, Workspace
from training.report import write_report

MAX_TOKENS = 512
# The example of the model's card, with the logits that the card gives for the published fp32 weights.
QUERY = "How many people live in Berlin?"
PUBLISHED = {
    "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.": 9.218911,
    "Berlin is well known for its museums.": -4.0780287,
}
TOLERANCE = 0.5  # logits range from about -11 to 11, and 8 bits cost some accuracy
TEXT = """
A cross-encoder by the sentence-transformers project: 12 layers that read a query and a passage together, trained on
MS MARCO. The graph was quantised by the publisher of the package that contains it, and is unchanged. The metric is its
largest difference from the logits that the model's card gives for two passages.
"""


def build(workspace: Workspace) -> Outcome:
    """Link the graph and compare it with the published logits."""
    files = workspace.input("ms-marco-minilm-l12")
    workspace.link(files["model.onnx"], "model-int8.onnx")
    workspace.link(files["tokenizer.json"], "tokenizer.json")
    schema = {"task": "reranking", "engine": "onnx-int8", "max_tokens": MAX_TOKENS}
    pairs = [(QUERY, text) for text in PUBLISHED]
    with workspace.steps(len(pairs)) as advance:
        logits = run_graph(workspace.folder, schema, OUTPUT, pairs, advance)[:, 0]
    difference = max(abs(float(logit) - card) for logit, card in zip(logits, PUBLISHED.values(), strict=True))
    if difference > TOLERANCE:
        raise WrongContent(f"the reranker is {difference:.2f} off the published logits; {TOLERANCE} is allowed")
    metrics = {"largest_difference": difference}
    write_report(workspace.folder, "reranker", TEXT, metrics)
    return Outcome(schema, metrics)
