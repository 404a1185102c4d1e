"""The tenants' quotas of what they store, counted over the collections that each owns."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from server.domain.access import Caller, Stored
from server.domain.context import current_or_none
from server.domain.errors import Excess, QuotaExceeded
from server.domain.rag import Document
from server.vectorstore.manager import CollectionManager

_BYTES_A_PASSAGE = 12  # three numbers; the vector comes on top


class StorageQuotas:
    """Counts what is stored and what running writes will add to it, which may count twice for a moment at their end.

    Servers that share a folder count each other's writes once they notice them, within 2 s. Use it on the event loop.
    """

    def __init__(self, collections: CollectionManager) -> None:
        self._collections = collections
        self._reserved: list[tuple[str, Stored]] = []  # owners, and what is being written for them

    def stored(self, caller: Caller, owner: str) -> Stored:
        """What a tenant has in the collections that it owns. A broken one counts as a collection without content."""
        names = [name for name, recorded in self._collections.owners().items() if caller.owner(name, recorded) == owner]
        found = [self._collections.open[name] for name in names if name in self._collections.open]
        return Stored(
            len(names), sum(each.snapshot.document_count for each in found), sum(each.size_bytes for each in found)
        )

    @contextmanager
    def room(self, name: str, added: Stored) -> Iterator[None]:
        """Reserve room for what a write adds to a collection while the body runs. Raises QuotaExceeded."""
        call = current_or_none()
        owner = self._owner(call.caller, name) if call is not None else ""
        if call is not None and (quotas := call.caller.quotas.get(owner)):
            stored = self.stored(call.caller, owner)
            reserved = [each for other, each in self._reserved if other == owner]
            total = Stored(*(sum(counts) for counts in zip(stored, *reserved, strict=True)))
            if excesses := quotas.excesses(f"tenant {owner}", total, added):
                if not (call.caller.is_admin or call.caller.tenant == owner):  # another tenant's numbers are its own
                    subject = f'the owner of collection "{name}"'
                    excesses = [
                        Excess(subject, f"quota of {each.limit}", each.limit, each.retry_after) for each in excesses
                    ]
                raise QuotaExceeded(excesses)
        reservation = owner, added
        self._reserved.append(reservation)
        try:
            yield
        finally:
            self._reserved.remove(reservation)

    def check(self, name: str, added: Stored) -> None:
        """As room(), without reserving it."""
        with self.room(name, added):
            pass

    def _owner(self, caller: Caller, name: str) -> str:
        recorded = self._collections.owners().get(name)
        return caller.owner_of_new(name) if recorded is None else caller.owner(name, recorded)


def written_bytes(documents: Sequence[Document], passages: int, dimensions: int) -> int:
    """About what documents with their passages and vectors take on disk."""
    texts = sum(
        len(text.encode())
        for each in documents
        for text in (each.id, each.text, each.title, each.uri, *each.metadata, *each.metadata.values())
    )
    return texts + passages * (_BYTES_A_PASSAGE + 4 * dimensions)
