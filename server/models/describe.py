"""From an artefact's manifest to what ModelService says of the model."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from server.domain.models import Feature, ModelDescription, ModelIdentity, ModelTask
from server.models.artefact import Artefact, unusable


def describe(
    artefact: Artefact,
    task: ModelTask,
    engine: str,
    *,
    labels: Sequence[str] = (),
    features: Sequence[Feature] = (),
    max_input_tokens: int = 0,
) -> ModelDescription:
    """The description of a model that comes from an artefact."""
    manifest = artefact.manifest
    return ModelDescription(
        identity=ModelIdentity(manifest.name, manifest.version, artefact.digest),
        task=task,
        engine=engine,
        labels=tuple(labels),
        features=tuple(features),
        metrics=dict(manifest.metrics),
        licence=manifest.licence,
        max_input_tokens=max_input_tokens,
        size_bytes=manifest.size_bytes,
        create_time=datetime.fromisoformat(manifest.created),
    )


def from_schema(artefact: Artefact, key: str) -> Any:
    """A value of the manifest's schema. Raises ModelUnavailable if it is not there."""
    if key not in artefact.manifest.schema:
        raise unusable(artefact.manifest.name, f'its schema lacks "{key}"')
    return artefact.manifest.schema[key]
