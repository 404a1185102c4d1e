"""What a manifest must look like, so that a strange one fails its own model and nothing that lists all models."""

import json
import sys
from datetime import datetime
from typing import Any

from server.domain.models import ModelDescription

FORMAT = 1  # a manifest without the field `format` has this one
_TEXTS = ("name", "version", "created", "licence")
_LARGEST = sys.float_info.max
_MAPS = ("files", "libraries", "inputs", "metrics", "schema")


def parse(content: bytes) -> dict[str, Any]:
    """The fields of a manifest; those that this release does not know are there, too.

    Raises ValueError, TypeError and KeyError for anything else than a manifest of this format.
    """
    try:
        raw = json.loads(content)
    except RecursionError as error:
        raise ValueError("the manifest is nested too deeply") from error
    if (found := raw.get("format", FORMAT)) != FORMAT:
        raise ValueError(f"its manifest has format {found}, which this release cannot read: install a newer release")
    for name, kind in (*((name, str) for name in _TEXTS), *((name, dict) for name in _MAPS)):
        if not isinstance(raw.get(name, kind()), kind):
            raise TypeError(name)
    for entry in raw["files"].values():
        if not isinstance(entry["sha256"], str) or type(entry["bytes"]) is not int:
            raise TypeError("files")
    if not 1970 <= datetime.fromisoformat(raw["created"]).year <= 9998:
        raise ValueError("the manifest is of no year that can be")
    return dict(raw)


def fault_of(description: ModelDescription) -> str:
    """Why ModelService could not say this of a model; "" if it can."""
    numbers = [*description.metrics.values(), *(n for f in description.features for n in (f.minimum, f.maximum))]
    texts = [*description.metrics, *description.labels]
    texts += [text for feature in description.features for text in (feature.name, *feature.allowed_values)]
    if not all(type(number) in {int, float} and -_LARGEST <= number <= _LARGEST for number in numbers):
        return "a number in its manifest is none"
    if not all(isinstance(text, str) and text.isprintable() for text in texts):
        return "a name in its manifest is no text"
    if type(description.max_input_tokens) is not int or not 0 <= description.max_input_tokens < 1 << 31:
        return "its schema's max_tokens is no length"
    return ""
