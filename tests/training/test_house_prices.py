"""The interval of the house prices."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.recipes.house_prices import COVERAGE, FOLDS, interval, measure


@given(st.integers(100, 5000), st.integers(0, 2**32 - 1))
def test_the_interval_holds_its_share_of_the_errors_it_was_set_by(count: int, seed: int) -> None:
    errors = np.random.default_rng(seed).standard_t(3, count)
    low, high = interval(errors)
    inside = ((low <= errors) & (errors <= high)).mean()
    assert COVERAGE <= inside <= COVERAGE + 4 / count + 0.01
    assert (errors < low).sum() == (errors > high).sum()


def test_the_coverage_of_other_sales_is_near_its_promise() -> None:
    chance = np.random.default_rng(0)
    truth = chance.normal(12, 0.4, 20_000)
    unseen = truth + chance.normal(0, 0.1, len(truth))
    metrics = measure(truth, unseen, np.arange(len(truth)) % FOLDS)
    assert abs(metrics["interval_coverage"] - COVERAGE) < 0.01
