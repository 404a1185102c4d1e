"""The memory of all models together, and its limit."""

from server.domain.errors import ModelDoesNotFit


class MemoryLimit:
    """At most `limit` bytes, or any number if that is None. Changed on the event loop alone; other threads may read."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._held: dict[object, int] = {}

    @property
    def in_use(self) -> int:
        """The sum of what is held."""
        return sum(self._held.copy().values())

    def by_name(self) -> dict[str, int]:
        """What is held by name and not by an engine here: language models in processes of their own."""
        return {holder: size for holder, size in self._held.copy().items() if isinstance(holder, str)}

    def hold(self, holder: object, size: int) -> None:
        """`holder` has so many bytes now."""
        self._held[holder] = size

    def free(self, holder: object) -> None:
        """`holder` has none any more."""
        self._held.pop(holder, None)

    def lacks(self, needed: int) -> bool:
        """Whether so many bytes more would exceed the limit."""
        return self.limit is not None and self.in_use + needed > self.limit

    def refusal(self, model: str, needed: int) -> ModelDoesNotFit:
        """What to raise if nothing can be evicted."""
        return ModelDoesNotFit(model, needed, self.limit or 0, self.in_use)
