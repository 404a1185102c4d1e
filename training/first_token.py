"""The last layer of a BERT classifier, computed for the one token that is read.

The pooler reads nothing but the first token of the last layer. The others are needed there as keys and values only, so
their queries, their attention and their feed-forward part are left out: of the six layers of MiniLM five sixths of one
are saved, and nothing changes in the result.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertForSequenceClassification

from training.export import added_mask


def first_token(layer: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """What a BERT layer makes of the first token alone: [batch, 1, hidden size], a sixth of the work.

    The pooler reads nothing else of the last layer, and there only keys and values need the other tokens.
    """
    attention = layer.attention.self
    heads = (attention.num_attention_heads, attention.attention_head_size)
    query, key, value = (
        project(tokens).unflatten(-1, heads).transpose(1, 2)
        for project, tokens in (
            (attention.query, hidden[:, :1]),
            (attention.key, hidden),
            (attention.value, hidden),
        )
    )
    context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    attended = layer.attention.output(context.transpose(1, 2).flatten(2), hidden[:, :1])
    result: Tensor = layer.output(layer.intermediate(attended), attended)
    return result


class Classifier(nn.Module):  # type: ignore[misc]
    """The logits of a sequence classifier, which reads the first token."""

    def __init__(self, model: BertForSequenceClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [batch, labels]"""
        bert = self.model.bert
        mask = added_mask(attention_mask)
        hidden = bert.embeddings(input_ids=input_ids, token_type_ids=torch.zeros_like(input_ids))
        *inner, last = bert.encoder.layer
        for layer in inner:
            hidden = layer(hidden, attention_mask=mask)
        logits: Tensor = self.model.classifier(bert.pooler(first_token(last, hidden, mask)))
        return logits
