"""Sentiment: all-MiniLM-L6-v2, fine-tuned to classify sentences as negative, neutral or positive.

Training is fast on two cores because the lower layers are frozen, so their output for each text is computed once; there
is no dropout; batches hold texts of similar length; and AdamW is fused. Few passes suffice because of soft labels, a
second head that predicts the rating itself and is discarded, a higher learning rate for the heads, and a first pass
over single words, which costs little.
"""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, BertForSequenceClassification

from training.datasets.sentiment import LABELS, SOURCES, Example, hard_labels, read_examples, read_words, soft_labels
from training.graphs.bert import write_classifier
from training.graphs.evaluate import evaluate_classifier
from training.graphs.frozen_layers import FrozenLayers
from training.recipe import Outcome, Workspace
from training.report import write_report

EPOCHS = {"fast": 1.05, "long": 2.0}
FROZEN_LAYERS = {"fast": 3, "long": 0}  # of six, besides the embeddings
LEARNING_RATE = 1.6e-4
HEAD_LEARNING_RATE = 6e-4
WARM_UP = 0.1  # of all steps; then the rate falls to 0
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
BATCH = 32
WORD_BATCH = 64
LABEL_DEVIATION = 0.35  # of a mean rating
RATING_WEIGHT = 0.6  # of the second head's loss
TRAINING_TOKENS = 40
MAX_TOKENS = 256
SEED = 0
TEXT = """
all-MiniLM-L6-v2, fine-tuned on {train:,} sentences from tweets, product reviews, film reviews and newspaper
editorials, each rated by twenty people. A mean rating beyond 0.5 in either direction is negative or positive. The
metrics are those of {test:,} other sentences, none of a review or article that was trained on. "binary" counts only
sentences that are not neutral. Profile: {profile}.
Known limits: English only; irony and double negation are often missed.
"""


def build(workspace: Workspace) -> Outcome:
    """Train, write the graphs, test."""
    folder = workspace.folder
    torch.manual_seed(SEED)
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_flush_denormal(True)
    embedder = workspace.artefact("embedder")
    base = embedder / "torch"
    parts = read_examples(workspace.input("vader"))
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = new_model(base, FROZEN_LAYERS[workspace.profile])
    words = read_words(workspace.input("vader"))
    train(workspace, model, tokenizer, words, parts["train"])

    model.save_pretrained(folder / "torch")
    tokenizer.save_pretrained(folder / "torch")
    workspace.link(embedder / "tokenizer.json", "tokenizer.json")
    write_classifier(model, folder)

    schema: dict[str, Any] = {
        "task": "classification",
        "labels": list(LABELS),
        "int8_scales": "row",
        "max_tokens": MAX_TOKENS,
        "torch": "transformers",
    }
    metrics = measure(workspace, schema, parts["test"])
    text = TEXT.format(train=len(parts["train"]), test=len(parts["test"]), profile=workspace.profile)
    write_report(folder, "sentiment", text, metrics, "confusion.png")
    return Outcome(schema, metrics)


def new_model(base: Path, frozen_layers: int) -> BertForSequenceClassification:
    """The encoder with a new head. Frozen layers need no gradient."""
    model = BertForSequenceClassification.from_pretrained(
        base,
        local_files_only=True,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    for part in (model.bert.embeddings, *model.bert.encoder.layer[:frozen_layers]):
        part.requires_grad_(False)
    return model


def train(
    workspace: Workspace, model: Any, tokenizer: Any, words: Sequence[Example], sentences: Sequence[Example]
) -> None:
    """Fine-tune in place."""
    examples = [*words, *sentences]
    ids = tokenizer([example.text for example in examples], truncation=True, max_length=TRAINING_TOKENS)["input_ids"]
    ratings = np.array([example.rating for example in examples])
    targets = torch.from_numpy(soft_labels(ratings, LABEL_DEVIATION)).float()
    rating_targets = torch.from_numpy(ratings).float()
    rating_head = nn.Linear(model.config.hidden_size, 1)
    lengths = [len(row) for row in ids]
    plan = [
        *plan_batches(lengths[: len(words)], 1.0, WORD_BATCH),
        *plan_batches(lengths[len(words) :], EPOCHS[workspace.profile], BATCH, first=len(words)),
    ]
    with workspace.steps(len(ids)) as advance:
        bert = FrozenLayers(model.bert, FROZEN_LAYERS[workspace.profile], ids, advance)

    encoder = [parameter for parameter in model.bert.parameters() if parameter.requires_grad]
    heads = [*model.classifier.parameters(), *rating_head.parameters()]
    optimiser = new_optimiser(encoder, heads)
    warm = round(WARM_UP * len(plan))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, (len(plan) - step) / (len(plan) - warm))
    )
    model.train()
    with workspace.steps(len(plan)) as advance:
        for batch in plan:
            pooled = bert.pooled(batch)
            loss = functional.cross_entropy(model.classifier(pooled), targets[batch])
            rating_loss = functional.smooth_l1_loss(rating_head(pooled).squeeze(-1), rating_targets[batch])
            (loss + RATING_WEIGHT * rating_loss).backward()
            nn.utils.clip_grad_norm_(encoder + heads, CLIP_NORM)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            advance(1)
    model.eval()


def new_optimiser(encoder: Sequence[nn.Parameter], heads: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW without weight decay for biases and norms, which have one dimension."""
    groups = [
        {"params": [weights for weights in group if (weights.ndim > 1) is decays], "lr": rate, "weight_decay": decay}
        for group, rate in ((encoder, LEARNING_RATE), (heads, HEAD_LEARNING_RATE))
        for decays, decay in ((True, WEIGHT_DECAY), (False, 0.0))
    ]
    return torch.optim.AdamW(groups, fused=True)


def plan_batches(lengths: Sequence[int], epochs: float, size: int, first: int = 0) -> list[list[int]]:
    """Indices, from `first` on, for every step: batches of texts of similar length, which need little padding."""
    rng = random.Random(SEED)
    batches: list[list[int]] = []
    while epochs > 0:
        order = list(range(len(lengths)))
        rng.shuffle(order)
        order.sort(key=lambda index: lengths[index])  # random within a length
        epoch = [[first + index for index in order[begin : begin + size]] for begin in range(0, len(order), size)]
        rng.shuffle(epoch)
        batches += epoch[: round(len(epoch) * min(1.0, epochs))]
        epochs -= 1.0
    return batches


def measure(workspace: Workspace, schema: dict[str, Any], examples: Sequence[Example]) -> dict[str, float]:
    """Test both graphs as they would be served, and put the better engine into the schema."""
    texts = [example.text for example in examples]
    truth = hard_labels(np.array([example.rating for example in examples]))
    with workspace.steps(2 * len(texts)) as advance:
        logits, metrics = evaluate_classifier(workspace.folder, schema, texts, truth, advance)
    found = logits.argmax(axis=1)
    polar = truth != LABELS.index("neutral")
    binary = np.where(logits[:, 2] > logits[:, 0], 2, 0)
    metrics["binary_accuracy"] = float((binary == truth)[polar].mean())
    sources = np.array([example.source for example in examples])
    return metrics | {f"accuracy_{source}": float((found == truth)[sources == source].mean()) for source in SOURCES}
