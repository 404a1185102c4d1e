"""Small BERT models with random weights, which are as large as those of trained ones."""

from collections.abc import Sequence

import torch
from transformers import BertConfig, BertForSequenceClassification


def tiny_classifier(**options: object) -> BertForSequenceClassification:
    """Four layers of width 24 and three labels."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 8000, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "num_labels": 3}
    model = BertForSequenceClassification(BertConfig(**{**sizes, **options})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
            if "LayerNorm.weight" in name:
                parameter[:2] *= 6  # outlying channels, as trained models have them
    return model


def padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both [texts, longest]."""
    ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    for number, values in enumerate(rows):
        ids[number, : len(values)] = torch.tensor(values)
    return ids, (ids != 0).long()
