"""Leaving out what no one reads must not change what is read."""

import pytest
import torch

from tests.training.berts import padded, tiny_classifier
from training.graphs.frozen_layers import HalfFrozen

ROWS = [[101, 7, 8, 9, 102], [101, 7, 102], [101, 11, 12, 13, 14, 15, 102]]


@pytest.mark.parametrize("frozen", [0, 3])
def test_half_frozen_is_exact(frozen: int) -> None:
    model = tiny_classifier()
    ids, mask = padded(ROWS)
    done: list[int] = []
    with torch.no_grad():
        half = HalfFrozen(model.bert, frozen, ROWS, done.append)
        expected = model.bert(ids, attention_mask=mask).pooler_output
        torch.testing.assert_close(half.pooled(range(len(ROWS))), expected, atol=1e-6, rtol=1e-5)
    assert sum(done) == len(ROWS)
