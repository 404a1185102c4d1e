"""The memory budget: who holds how much of it."""

from server.domain.errors import ModelDoesNotFit


class Budget:
    """At most `limit` bytes, or any number if that is None. Used on the event loop alone; others may read."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._held: dict[object, int] = {}

    @property
    def in_use(self) -> int:
        """The sum of what is held."""
        return sum(self._held.copy().values())

    def others(self) -> dict[str, int]:
        """What is held by those that have a name and no slot, for instance a language model in its own process."""
        return {who: size for who, size in self._held.copy().items() if isinstance(who, str)}

    def hold(self, who: object, size: int) -> None:
        """Note that `who` holds so many bytes now."""
        self._held[who] = size

    def free(self, who: object) -> None:
        """Note that `who` holds nothing any more."""
        self._held.pop(who, None)

    def lacks(self, needed: int) -> bool:
        """Whether there is too little for so many bytes more."""
        return self.limit is not None and self.in_use + needed > self.limit

    def refuse(self, model: str, needed: int) -> ModelDoesNotFit:
        """What to raise if it stays that way."""
        return ModelDoesNotFit(model, needed, self.limit or 0, self.in_use)
