"""Documents as JSON, in logs and in segments. Unknown fields are ignored: a newer version may have written them."""

from collections.abc import Mapping
from typing import Any

from server.domain.rag import Document


def document_of(fields: Mapping[str, Any]) -> Document:
    """The document that a JSON object describes. Raises ValueError, KeyError or TypeError if it describes none."""
    document = Document(
        fields["id"], fields["text"], fields.get("title", ""), fields.get("uri", ""), dict(fields.get("metadata", {}))
    )
    texts = (document.id, document.text, document.title, document.uri, *document.metadata, *document.metadata.values())
    for text in texts:
        if not isinstance(text, str):
            raise TypeError("a field of a document is not a text")
        if not text.isascii():
            text.encode()  # a lone surrogate cannot be sent
    return document
