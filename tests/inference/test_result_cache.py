"""The cache of results: exact, bounded by bytes, counted, and off for 0 bytes."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.inference.computation import ComputationCounters
from server.inference.result_cache import ResultCache


class Model:
    """Reverses texts, and remembers which."""

    def __init__(self) -> None:
        self.computed: list[str] = []

    async def __call__(self, texts: Sequence[str]) -> list[str]:
        await asyncio.sleep(0)
        self.computed += texts
        return [text[::-1] for text in texts]


def make(limit: int) -> tuple[ResultCache[str], ComputationCounters, Model]:
    counters = ComputationCounters()
    return ResultCache(limit, len, counters), counters, Model()


async def test_what_was_computed_is_not_computed_again() -> None:
    cache, counters, model = make(10_000)
    assert await cache.through(["ab", "cd", "ab"], model) == ["ba", "dc", "ba"]
    assert await cache.through(["ef", "cd"], model) == ["fe", "dc"]
    assert model.computed == ["ab", "cd", "ef"]
    assert (counters.cache_hits, counters.cache_misses) == (2, 3)


async def test_it_is_off_for_no_bytes() -> None:
    cache, counters, model = make(0)
    for _ in range(2):
        assert await cache.through(["ab", "ab"], model) == ["ba", "ba"]
    assert model.computed == ["ab"] * 4
    assert (counters.cache_hits, counters.cache_misses, counters.cache_bytes) == (0, 0, 0)


async def test_what_was_not_asked_for_the_longest_gives_way() -> None:
    cache, _, model = make(3 * 260)  # three entries of two characters
    await cache.through(["ab", "cd", "ef"], model)
    await cache.through(["ab"], model)
    await cache.through(["gh"], model)
    model.computed.clear()
    await cache.through(["ab", "ef", "gh"], model)
    assert model.computed == []
    await cache.through(["cd"], model)
    assert model.computed == ["cd"]


async def test_a_failure_is_not_kept() -> None:
    cache, counters, model = make(10_000)

    async def fail(texts: Sequence[str]) -> list[str]:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await cache.through(["ab"], fail)
    assert await cache.through(["ab"], model) == ["ba"]
    assert counters.cache_misses == 2


async def test_the_same_text_at_the_same_time_is_kept_once() -> None:
    cache, counters, model = make(10_000)
    await asyncio.gather(*(cache.through(["ab"], model) for _ in range(5)))
    once, counters_once, other = make(10_000)
    await once.through(["ab"], other)
    assert counters.cache_bytes == counters_once.cache_bytes


@given(
    requests=st.lists(st.lists(st.text(max_size=30), min_size=1, max_size=5), max_size=40), limit=st.integers(1, 2000)
)
async def test_it_holds_no_more_than_its_limit_and_answers_as_the_model(requests: list[list[str]], limit: int) -> None:
    cache, counters, model = make(limit)
    for texts in requests:
        assert await cache.through(texts, model) == [text[::-1] for text in texts]
        assert 0 <= counters.cache_bytes <= limit
        assert counters.cache_bytes == sum(size for _, size in cache._kept.values())
    assert counters.cache_hits + counters.cache_misses == sum(map(len, requests))


async def test_a_successor_with_the_same_counters_counts_its_own_bytes() -> None:
    old, counters, model = make(1000)
    await old.through(["a" * 300], model)
    new = ResultCache[str](1000, len, counters)
    await new.through(["b" * 300], model)
    assert 0 < counters.cache_bytes <= 1000
    assert await new.through(["b" * 300], model) == ["b" * 300]
