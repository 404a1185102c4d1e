"""quintet.v1.ModelService"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from quintet.v1 import common_pb2, model_pb2, model_pb2_grpc

from server.domain.context import current
from server.domain.errors import InvalidRequest, Violation
from server.domain.models import Described, ModelDescription, ModelTask
from server.models.handle import Handle, Slot, find
from server.models.manager import ModelManager
from server.rpc.convert import model_ref
from server.rpc.service_spec import ANY_ROLE, FREE, MethodSpec, ServiceSpec
from server.tenancy.tenants import Role


@dataclass(frozen=True)
class Row:
    """A model that the server is configured with."""

    slot: Slot[Any]
    task: ModelTask


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """What is served here, how it is, and how it is replaced."""

    def __init__(
        self,
        rows: Sequence[Row],
        pool: ModelManager,
        services: Callable[[], Mapping[str, str]],
        *,
        version: str,
        git_commit: str,
        limits: Mapping[str, int],
        warnings: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._rows = {row.slot.name: row for row in sorted(rows, key=lambda row: row.slot.name)}
        self._pool = pool
        self._services = services
        self._changed = asyncio.Event()
        self._stopping = False
        self._version = version
        self._git_commit = git_commit
        self._limits = model_pb2.ServerLimits(**limits)
        self._warnings = warnings
        self._started = datetime.now(UTC)

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        """Every model, sorted by name."""
        return model_pb2.ListModelsResponse(models=await self._models())

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        """One model."""
        return model_pb2.GetModelResponse(model=await self._model(find(self._rows, request.name)))

    async def LoadModel(self, request: model_pb2.LoadModelRequest, context: Any) -> model_pb2.LoadModelResponse:
        """Into memory."""
        row = self._pooled(request.name)
        await self._pool.load(request.name, current().deadline)
        return model_pb2.LoadModelResponse(model=await self._model(row))

    async def UnloadModel(self, request: model_pb2.UnloadModelRequest, context: Any) -> model_pb2.UnloadModelResponse:
        """Out of memory."""
        row = self._pooled(request.name)
        await self._pool.unload(request.name)
        return model_pb2.UnloadModelResponse(model=await self._model(row))

    async def ReloadModel(self, request: model_pb2.ReloadModelRequest, context: Any) -> model_pb2.ReloadModelResponse:
        """What is on disk now."""
        row = self._pooled(request.name)
        await self._pool.reload(request.name)
        return model_pb2.ReloadModelResponse(model=await self._model(row))

    async def SetAlias(self, request: model_pb2.SetAliasRequest, context: Any) -> model_pb2.SetAliasResponse:
        """Another version."""
        row = self._pooled(request.name)
        if not self._pool.plans[request.name].has_artefact:
            raise InvalidRequest([Violation("name", "is a hub's model, which has no versions here")])
        await self._pool.set_alias(request.name, request.alias, request.target, force=request.force)
        return model_pb2.SetAliasResponse(model=await self._model(row))

    async def WatchModels(
        self, request: model_pb2.WatchModelsRequest, context: Any
    ) -> AsyncIterator[model_pb2.WatchModelsResponse]:
        """All models, then those that change, then done. Nothing queues up for a slow reader but the latest."""
        seen = {name: row.slot.revision for name, row in self._rows.items()}
        snapshot = model_pb2.ModelsSnapshot(models=await self._models())
        yield model_pb2.WatchModelsResponse(snapshot=snapshot)
        while not self._stopping:
            changed = self._changed
            for name, row in self._rows.items():
                if row.slot.revision != seen[name]:
                    seen[name] = row.slot.revision
                    yield model_pb2.WatchModelsResponse(changed=await self._model(row))
            if changed is self._changed:
                await changed.wait()
        yield model_pb2.WatchModelsResponse(done=model_pb2.WatchModelsDone())

    def wake(self) -> None:
        """Something may have changed: tell the watchers."""
        self._changed.set()
        self._changed = asyncio.Event()

    def stop(self) -> None:
        """End every watch, so that none holds the stop of the server."""
        self._stopping = True
        self.wake()

    async def GetServerInfo(
        self, request: model_pb2.GetServerInfoRequest, context: Any
    ) -> model_pb2.GetServerInfoResponse:
        """Versions, limits, services; what must be mended, for admins alone: it may name other tenants."""
        return model_pb2.GetServerInfoResponse(
            version=self._version,
            api_version="quintet.v1",
            git_commit=self._git_commit,
            start_time=_timestamp(self._started),
            current_time=_timestamp(datetime.now(UTC)),
            limits=self._limits,
            services=[
                model_pb2.ServiceStatus(name=name, serving=not message, message=message)
                for name, message in sorted(self._services().items())
            ],
            warnings=self._warnings() if "admin" in current().caller.roles else (),
        )

    def _pooled(self, name: str) -> Row:
        """A model that is loaded and replaced by request. Raises ModelNotFound or InvalidRequest."""
        row = find(self._rows, name)
        if name not in self._pool.plans:
            raise InvalidRequest([Violation("name", "is a language model, which the server's settings start")])
        return row

    async def _models(self) -> list[model_pb2.Model]:
        return [await self._model(row) for row in self._rows.values()]

    async def _model(self, row: Row) -> model_pb2.Model:
        slot = row.slot
        model = model_pb2.Model(
            ref=common_pb2.ModelRef(name=slot.name),
            task=model_pb2.ModelTask.ValueType(row.task.value),
            state=model_pb2.ModelState.ValueType(slot.state.value),
            state_message=slot.message,
        )
        if isinstance(slot.loaded, Described):
            _describe(model, slot.loaded.description)
        if isinstance(slot, Handle):
            plan = self._pool.plans[slot.name]
            model.pinned = plan.pinned
            model.memory_bytes = slot.resident.bytes if slot.resident else 0
            model.load_count, model.failed_load_count = slot.loads, slot.failures
            if plan.has_artefact:
                model.aliases.update(await asyncio.to_thread(self._pool.store.aliases, slot.name))
        return model


def spec(servicer: ModelServicer) -> ServiceSpec:
    """The service."""
    return ServiceSpec(
        model_pb2.DESCRIPTOR.services_by_name["ModelService"],
        model_pb2_grpc.add_ModelServiceServicer_to_server,
        servicer,
        {
            **dict.fromkeys(("GetServerInfo", "ListModels", "GetModel"), MethodSpec(ANY_ROLE, FREE)),
            **dict.fromkeys(
                ("LoadModel", "UnloadModel", "ReloadModel", "SetAlias", "WatchModels"), MethodSpec(Role.ADMIN, FREE)
            ),
        },
    )


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
