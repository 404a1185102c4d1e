"""Exact results of models, kept for texts that recur."""

import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from server.inference.computation import ComputationCounters

V = TypeVar("V")
_ENTRY_BYTES = 200  # of an entry besides its text and its value


class ResultCache(Generic[V]):
    """The results of one model by their texts, least recently used ones evicted first.

    Holds at most `limit` bytes, and nothing for 0; `size` estimates those of a result. Each loaded model has its own,
    so all results are of one digest. Belongs to the event loop.
    """

    def __init__(self, limit: int, size: Callable[[V], int], counters: ComputationCounters) -> None:
        self._limit = limit
        self._size = size
        self._counters = counters
        self._kept: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._bytes = 0

    async def through(
        self, texts: Sequence[str], compute: Callable[[Sequence[str]], Awaitable[Sequence[V]]]
    ) -> Sequence[V]:
        """One result a text, in order; `compute` is asked for the distinct texts that are not in the cache."""
        if not self._limit:
            return await compute(texts)
        found = {text: self._kept[text][0] for text in texts if text in self._kept}
        for text in found:
            self._kept.move_to_end(text)
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        self._counters.cache_hits += len(texts) - len(missing)
        self._counters.cache_misses += len(missing)
        if missing:
            for text, value in zip(missing, await compute(missing), strict=True):
                found[text] = value
                self._keep(text, value)
        return [found[text] for text in texts]

    def _keep(self, text: str, value: V) -> None:
        size = sys.getsizeof(text) + self._size(value) + _ENTRY_BYTES
        if size > self._limit or text in self._kept:  # a concurrent call kept it
            return
        self._kept[text] = value, size
        self._bytes += size
        while self._bytes > self._limit:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed
        self._counters.cache_bytes = self._bytes  # the counters outlive a model that is replaced
