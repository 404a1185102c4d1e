"""Cached lower layers, and computing only the first token of the last layer, do not change the result."""

import pytest
import torch

from tests.training.berts import padded, tiny_classifier
from training.graphs.frozen_layers import FrozenLayers

ROWS = [[101, 7, 8, 9, 102], [101, 7, 102], [101, 11, 12, 13, 14, 15, 102]]


@pytest.mark.parametrize("frozen", [0, 3])
def test_frozen_layers_are_exact(frozen: int) -> None:
    model = tiny_classifier()
    ids, mask = padded(ROWS)
    done: list[int] = []
    with torch.no_grad():
        bert = FrozenLayers(model.bert, frozen, ROWS, done.append)
        expected = model.bert(ids, attention_mask=mask).pooler_output
        torch.testing.assert_close(bert.pooled(range(len(ROWS))), expected, atol=1e-6, rtol=1e-5)
    assert sum(done) == len(ROWS)
