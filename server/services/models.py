"""quintet.v1.ModelService"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from quintet.v1 import common_pb2, model_pb2, model_pb2_grpc

from server.engines.interfaces import Described, ModelDescription, ModelTask
from server.errors import ModelNotFound
from server.runtime.models import Slot
from server.services.convert import model_ref
from server.services.health import Health


@dataclass(frozen=True)
class Row:
    """A model that the server is configured with."""

    slot: Slot[Any]
    task: ModelTask


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """What is served here, and how it is."""

    def __init__(
        self,
        rows: Sequence[Row],
        health: Health,
        *,
        version: str,
        git_commit: str,
        limits: Mapping[str, int],
    ) -> None:
        self._rows = {row.slot.name: row for row in sorted(rows, key=lambda row: row.slot.name)}
        self._health = health
        self._version = version
        self._git_commit = git_commit
        self._limits = model_pb2.ServerLimits(**limits)
        self._started = datetime.now(UTC)

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        """Every model, sorted by name."""
        return model_pb2.ListModelsResponse(models=[_model(row) for row in self._rows.values()])

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        """One model."""
        if request.name not in self._rows:
            raise ModelNotFound(request.name, list(self._rows))
        return model_pb2.GetModelResponse(model=_model(self._rows[request.name]))

    async def GetServerInfo(
        self, request: model_pb2.GetServerInfoRequest, context: Any
    ) -> model_pb2.GetServerInfoResponse:
        """Versions, limits, services."""
        return model_pb2.GetServerInfoResponse(
            version=self._version,
            api_version="quintet.v1",
            git_commit=self._git_commit,
            start_time=_timestamp(self._started),
            current_time=_timestamp(datetime.now(UTC)),
            limits=self._limits,
            services=[
                model_pb2.ServiceStatus(name=name, serving=not message, message=message)
                for name, message in sorted(self._health.messages.items())
            ],
        )


def _model(row: Row) -> model_pb2.Model:
    model = model_pb2.Model(
        ref=common_pb2.ModelRef(name=row.slot.name),
        task=model_pb2.ModelTask.ValueType(row.task.value),
        state=model_pb2.ModelState.ValueType(row.slot.state.value),
        state_message=row.slot.message,
    )
    if isinstance(row.slot.loaded, Described):
        _describe(model, row.slot.loaded.description)
    return model


def _describe(model: model_pb2.Model, known: ModelDescription) -> None:
    model.ref.CopyFrom(model_ref(known.identity))
    model.engine = known.engine
    model.labels.extend(known.labels)
    model.features.extend(
        model_pb2.Feature(name=f.name, allowed_values=f.allowed_values, minimum=f.minimum, maximum=f.maximum)
        for f in known.features
    )
    model.metrics.update(known.metrics)
    model.licence = known.licence
    model.max_input_tokens = known.max_input_tokens
    model.size_bytes = known.size_bytes
    if known.created:
        model.create_time.CopyFrom(_timestamp(known.created))


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
