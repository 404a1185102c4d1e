"""Sentiment: all-MiniLM-L6-v2, fine-tuned to tell negative, neutral and positive sentences apart.

What makes it fast on two cores: the embeddings and the two lowest layers stay as they are, there is no dropout,
batches hold texts of like length, and AdamW is fused. What makes it good in one pass: soft labels, a second head
that predicts the rating itself and is thrown away, and a higher learning rate for the heads.
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
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, BertForSequenceClassification

from training.export import Classifier, export
from training.pictures import draw_confusion
from training.quantise import quantise
from training.recipe import Outcome, Workshop
from training.report import write_report
from training.sentiment_data import LABELS, SOURCES, Example, hard_labels, read_examples, soft_labels
from training.serving import run_graph

EPOCHS = {"fast": 1.15, "long": 2.0}
LEARNING_RATE = 1.6e-4
HEAD_LEARNING_RATE = 6e-4
WARM_UP = 0.1  # of all steps; then the rate falls to 0
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
BATCH = 32
FROZEN_LAYERS = 2
LABEL_DEVIATION = 0.35  # of a mean rating
RATING_WEIGHT = 0.6  # of the second head's loss
TRAINING_TOKENS = 64
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
    """Train, export, quantise, test."""
    folder = workshop.folder
    torch.manual_seed(SEED)
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_flush_denormal(True)
    base = workshop.made("embedder") / "torch"
    parts = read_examples(workshop.input("vader"))
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = new_model(base)
    train(workshop, model, tokenizer, parts["train"])

    model.save_pretrained(folder / "torch")
    tokenizer.save_pretrained(folder / "torch")
    workshop.place(workshop.made("embedder") / "tokenizer.json", "tokenizer.json")
    model.set_attn_implementation("eager")
    export(Classifier(model), folder / "model.onnx", "logits")
    texts = [example.text for example in parts["validation"]]
    quantise(folder / "model.onnx", folder / "model-int8.onnx", folder / "tokenizer.json", texts, MAX_TOKENS)

    schema: dict[str, Any] = {
        "task": "classification",
        "labels": list(LABELS),
        "max_tokens": MAX_TOKENS,
        "engine": "onnx-int8",
        "torch": "transformers",
    }
    metrics = judge(workshop, schema, parts["test"])
    text = TEXT.format(train=len(parts["train"]), test=len(parts["test"]), profile=workshop.profile)
    write_report(folder, "sentiment", text, metrics, ["confusion.png"])
    return Outcome(schema, metrics)


def new_model(base: Path) -> BertForSequenceClassification:
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
    for part in (model.bert.embeddings, *model.bert.encoder.layer[:FROZEN_LAYERS]):
        part.requires_grad_(False)
    return model


def train(workshop: Workshop, model: Any, tokenizer: Any, examples: Sequence[Example]) -> None:
    """Fine-tune in place."""
    ids = tokenizer([example.text for example in examples], truncation=True, max_length=TRAINING_TOKENS)["input_ids"]
    ratings = np.array([example.rating for example in examples])
    targets = torch.from_numpy(soft_labels(ratings, LABEL_DEVIATION)).float()
    rating_targets = torch.from_numpy(ratings).float()
    rating_head = nn.Linear(model.config.hidden_size, 1)
    batches = plan_batches([len(row) for row in ids], EPOCHS[workshop.profile])

    encoder = [parameter for parameter in model.bert.parameters() if parameter.requires_grad]
    heads = [*model.classifier.parameters(), *rating_head.parameters()]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices_or_vectors, "lr": rate, "weight_decay": decay}
            for group, rate in ((encoder, LEARNING_RATE), (heads, HEAD_LEARNING_RATE))
            for matrices_or_vectors, decay in (
                ([parameter for parameter in group if parameter.ndim > 1], WEIGHT_DECAY),
                ([parameter for parameter in group if parameter.ndim == 1], 0.0),
            )
        ],
        fused=True,
    )
    warm = round(WARM_UP * len(batches))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, (len(batches) - step) / (len(batches) - warm))
    )
    model.train()
    with workshop.steps(len(batches)) as steps:
        for batch in batches:
            pooled = model.bert(**collate(ids, batch)).pooler_output
            loss = functional.cross_entropy(model.classifier(pooled), targets[batch])
            rating_loss = functional.smooth_l1_loss(rating_head(pooled).squeeze(-1), rating_targets[batch])
            (loss + RATING_WEIGHT * rating_loss).backward()
            nn.utils.clip_grad_norm_(encoder + heads, CLIP_NORM)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            steps.advance(1)
    model.eval()


def plan_batches(lengths: Sequence[int], epochs: float) -> list[list[int]]:
    """Indices for every step: batches of texts of like length, so that little is padded, in random order."""
    chance = random.Random(SEED)
    batches: list[list[int]] = []
    while epochs > 0:
        order = list(range(len(lengths)))
        chance.shuffle(order)
        order.sort(key=lambda index: lengths[index])  # it stays random within a length
        epoch = [order[begin : begin + BATCH] for begin in range(0, len(order), BATCH)]
        chance.shuffle(epoch)
        batches += epoch[: round(len(epoch) * min(1.0, epochs))]
        epochs -= 1.0
    return batches


def collate(ids: Sequence[Sequence[int]], batch: Sequence[int]) -> dict[str, Tensor]:
    """The model's inputs for some texts, padded with zeros; without padding, attention is faster without a mask."""
    width = max(len(ids[index]) for index in batch)
    rows = torch.tensor([[*ids[index], *[0] * (width - len(ids[index]))] for index in batch])
    mask = rows != 0
    return {"input_ids": rows} if bool(mask.all()) else {"input_ids": rows, "attention_mask": mask.long()}


def judge(workshop: Workshop, schema: dict[str, Any], examples: Sequence[Example]) -> dict[str, float]:
    """Test both graphs as they will be served; draw the confusion of the one that is recommended."""
    texts = [example.text for example in examples]
    truth = hard_labels(np.array([example.rating for example in examples]))
    with workshop.steps(2 * len(texts)) as task:
        exact = run_graph(workshop.folder, schema, "logits", texts, task, engine="onnx")
        logits = run_graph(workshop.folder, schema, "logits", texts, task, engine="onnx-int8")
    found = logits.argmax(axis=1)
    draw_confusion(workshop.folder / "confusion.png", LABELS, truth, found)
    polar = truth != LABELS.index("neutral")
    binary = np.where(logits[:, 2] > logits[:, 0], 2, 0)
    metrics = {
        "accuracy": _share(exact.argmax(axis=1) == truth),
        "accuracy_int8": _share(found == truth),
        "agreement_int8": _share(exact.argmax(axis=1) == found),
        "macro_f1_int8": float(f1_score(truth, found, average="macro")),
        "binary_accuracy_int8": _share((binary == truth)[polar]),
    }
    sources = np.array([example.source for example in examples])
    return metrics | {f"accuracy_int8_{source}": _share((found == truth)[sources == source]) for source in SOURCES}


def _share(right: NDArray[np.bool_]) -> float:
    return float(right.mean())
