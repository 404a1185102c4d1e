"""What a model says of itself."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model made a result. `digest` is "sha256:..." of the artefact's manifest, empty for a provider's model."""

    name: str
    version: str
    digest: str


class ModelTask(IntEnum):
    """What a model does. Names and values are those of quintet.v1.ModelTask."""

    CLASSIFICATION = 1
    REGRESSION = 2
    CHAT = 3
    EMBEDDING = 4
    LINGUISTICS = 5
    LANGUAGE_ID = 6
    RERANKING = 7


@dataclass(frozen=True, slots=True)
class Feature:
    """An input of a regression: a category with `allowed_values`, or a number with the range of the training data."""

    name: str
    allowed_values: tuple[str, ...] = ()
    minimum: float = 0.0
    maximum: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What ModelService says of a model. Field names are those of quintet.v1.Model."""

    identity: ModelIdentity
    task: ModelTask
    engine: str
    labels: tuple[str, ...] = ()
    features: tuple[Feature, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    licence: str = ""
    max_input_tokens: int = 0
    size_bytes: int = 0
    create_time: datetime | None = None
