"""Exporting BERT models of PyTorch to ONNX, with a dynamic batch and sequence length.

    sentence encoder     input_ids, attention_mask -> embedding [batch, hidden], rows of length 1
    sequence classifier  input_ids, attention_mask -> logits    [batch, labels]

token_type_ids are zeros inside the graph: every text has one segment.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertModel

OPSET = 17  # from here on LayerNormalization is one operator


class Encoder(nn.Module):  # type: ignore[misc]
    """A BERT, the mean of its token vectors under the mask, scaled to length 1."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embedding [batch, hidden]"""
        mask = added_mask(attention_mask)
        types = torch.zeros_like(input_ids)
        tokens = self.bert(input_ids=input_ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return mean / mean.norm(p=2, dim=1, keepdim=True).clamp(min=1e-12)


def export(module: nn.Module, target: Path, output: str) -> None:
    """Write `module` as ONNX; `output` names its result."""
    # Two rows of unequal length, so that nothing is folded to a constant batch, length or mask.
    ids = torch.tensor([[101, 7592, 2088, 2003, 102], [101, 7592, 102, 0, 0]])
    inputs = ["input_ids", "attention_mask"]
    dynamic = {name: {0: "batch", 1: "sequence"} for name in inputs} | {output: {0: "batch"}}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        warnings.simplefilter("ignore", category=DeprecationWarning)
        torch.onnx.export(
            module.eval().float(),
            (ids, (ids != 0).long()),
            target,
            input_names=inputs,
            output_names=[output],
            dynamic_axes=dynamic,
            opset_version=OPSET,
            dynamo=False,  # the older exporter needs nothing besides torch
        )


def added_mask(attention_mask: Tensor) -> Tensor:
    """A mask that is added to the attention scores.

    transformers would build it with operations that tracing cannot follow; one of four dimensions is passed through
    as it is, and gives the plain attention that onnxruntime knows how to fuse.
    """
    visible = attention_mask.unsqueeze(1).unsqueeze(2).to(torch.float32)
    return (1.0 - visible) * torch.finfo(torch.float32).min
