"""Sentiment: all-MiniLM-L6-v2, fine-tuned to tell negative, neutral and positive sentences apart.

What makes it fast on two cores: the lower layers stay as they are, so what they make of every text is computed once;
there is no dropout, batches hold texts of like length, and AdamW is fused. What makes it good in few passes: soft
labels, a second head that predicts the rating itself and is thrown away, a higher learning rate for the heads, and a
first pass over single words, which cost next to nothing.
"""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, BertForSequenceClassification

from training.datasets.sentiment import LABELS, SOURCES, Example, hard_labels, read_examples, read_words, soft_labels
from training.graphs.bert import write_classifier
from training.graphs.evaluate import recommend, run_graph
from training.graphs.frozen_layers import HalfFrozen
from training.recipe import Outcome, Workshop
from training.reports.plots import draw_confusion
from training.reports.report import write_report

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


def build(workshop: Workshop) -> Outcome:
    """Train, write the graphs, test."""
    folder = workshop.folder
    torch.manual_seed(SEED)
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_flush_denormal(True)
    base = workshop.made("embedder") / "torch"
    parts = read_examples(workshop.input("vader"))
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = new_model(base, FROZEN_LAYERS[workshop.profile])
    words = read_words(workshop.input("vader"))
    train(workshop, model, tokenizer, words, parts["train"])

    model.save_pretrained(folder / "torch")
    tokenizer.save_pretrained(folder / "torch")
    workshop.place(workshop.made("embedder") / "tokenizer.json", "tokenizer.json")
    write_classifier(model, folder)

    schema: dict[str, Any] = {
        "task": "classification",
        "labels": list(LABELS),
        "int8_scales": "row",
        "max_tokens": MAX_TOKENS,
        "torch": "transformers",
    }
    metrics = judge(workshop, schema, parts["test"])
    text = TEXT.format(train=len(parts["train"]), test=len(parts["test"]), profile=workshop.profile)
    write_report(folder, "sentiment", text, metrics, ["confusion.png"])
    return Outcome(schema, metrics)


def new_model(base: Path, frozen_layers: int) -> BertForSequenceClassification:
    """The encoder with a new head; what stays as it is needs no gradient."""
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
    workshop: Workshop, model: Any, tokenizer: Any, words: Sequence[Example], sentences: Sequence[Example]
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
        *plan_batches(lengths[len(words) :], EPOCHS[workshop.profile], BATCH, first=len(words)),
    ]
    with workshop.steps(len(ids)) as steps:
        half = HalfFrozen(model.bert, FROZEN_LAYERS[workshop.profile], ids, steps.advance)

    encoder = [parameter for parameter in model.bert.parameters() if parameter.requires_grad]
    heads = [*model.classifier.parameters(), *rating_head.parameters()]
    optimiser = new_optimiser(encoder, heads)
    warm = round(WARM_UP * len(plan))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, (len(plan) - step) / (len(plan) - warm))
    )
    model.train()
    with workshop.steps(len(plan)) as steps:
        for batch in plan:
            pooled = half.pooled(batch)
            loss = functional.cross_entropy(model.classifier(pooled), targets[batch])
            rating_loss = functional.smooth_l1_loss(rating_head(pooled).squeeze(-1), rating_targets[batch])
            (loss + RATING_WEIGHT * rating_loss).backward()
            nn.utils.clip_grad_norm_(encoder + heads, CLIP_NORM)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            steps.advance(1)
    model.eval()


def new_optimiser(encoder: Sequence[nn.Parameter], heads: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW; biases and norms, which have one dimension, do not decay."""
    groups = [
        {"params": [weights for weights in group if (weights.ndim > 1) is decays], "lr": rate, "weight_decay": decay}
        for group, rate in ((encoder, LEARNING_RATE), (heads, HEAD_LEARNING_RATE))
        for decays, decay in ((True, WEIGHT_DECAY), (False, 0.0))
    ]
    return torch.optim.AdamW(groups, fused=True)


def plan_batches(lengths: Sequence[int], epochs: float, size: int, first: int = 0) -> list[list[int]]:
    """Indices, from `first` on, for every step: batches of texts of like length, which need little padding."""
    chance = random.Random(SEED)
    batches: list[list[int]] = []
    while epochs > 0:
        order = list(range(len(lengths)))
        chance.shuffle(order)
        order.sort(key=lambda index: lengths[index])  # it stays random within a length
        epoch = [[first + index for index in order[begin : begin + size]] for begin in range(0, len(order), size)]
        chance.shuffle(epoch)
        batches += epoch[: round(len(epoch) * min(1.0, epochs))]
        epochs -= 1.0
    return batches


def judge(workshop: Workshop, schema: dict[str, Any], examples: Sequence[Example]) -> dict[str, float]:
    """Test both graphs as they would be served, put the better engine into the schema, and draw its confusion."""
    texts = [example.text for example in examples]
    truth = hard_labels(np.array([example.rating for example in examples]))
    with workshop.steps(2 * len(texts)) as task:
        exact = run_graph(workshop.folder, schema, "logits", texts, task, engine="onnx")
        quantised = run_graph(workshop.folder, schema, "logits", texts, task, engine="onnx-int8")
    schema["engine"] = recommend(truth, exact.argmax(axis=1), quantised.argmax(axis=1))
    logits = quantised if schema["engine"] == "onnx-int8" else exact
    found = logits.argmax(axis=1)
    draw_confusion(workshop.folder / "confusion.png", LABELS, truth, found)
    polar = truth != LABELS.index("neutral")
    binary = np.where(logits[:, 2] > logits[:, 0], 2, 0)
    metrics = {
        "accuracy": _share(found == truth),
        "binary_accuracy": _share((binary == truth)[polar]),
        "macro_f1": float(f1_score(truth, found, average="macro")),
        "accuracy_fp32": _share(exact.argmax(axis=1) == truth),
        "accuracy_int8": _share(quantised.argmax(axis=1) == truth),
        "agreement_int8": _share(exact.argmax(axis=1) == quantised.argmax(axis=1)),
    }
    sources = np.array([example.source for example in examples])
    return metrics | {f"accuracy_{source}": _share((found == truth)[sources == source]) for source in SOURCES}


def _share(right: NDArray[np.bool_]) -> float:
    return float(right.mean())
