"""Documents as JSON, in logs and in segments. Fields that a newer version has written are kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.domain.rag import Document

_KNOWN = frozenset({"id", "text", "title", "uri", "metadata"})


@dataclass(frozen=True, slots=True)
class NewerDocument(Document):
    """A document with fields that this version does not know."""

    others: dict[str, Any] = field(default_factory=dict)


def document_of(fields: Mapping[str, Any]) -> Document:
    """The document that a JSON object describes. Raises ValueError, KeyError or TypeError if it describes none."""
    known = (
        fields["id"],
        fields["text"],
        fields.get("title", ""),
        fields.get("uri", ""),
        dict(fields.get("metadata", {})),
    )
    others = {name: fields[name] for name in fields.keys() - _KNOWN}
    document = NewerDocument(*known, others) if others else Document(*known)
    texts = (document.id, document.text, document.title, document.uri, *document.metadata, *document.metadata.values())
    for text in texts:
        if not isinstance(text, str):
            raise TypeError("a field of a document is not a text")
        if not text.isascii():
            text.encode()  # a lone surrogate cannot be sent
    return document


def fields_of(document: Document) -> dict[str, Any]:
    """The JSON object of a document."""
    known = {name: getattr(document, name) for name in ("id", "text", "title", "uri", "metadata")}
    return known | document.others if isinstance(document, NewerDocument) else known
