"""quintet.v1.ModelService"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from quintet.v1 import common_pb2, model_pb2, model_pb2_grpc

from server.domain.context import current
from server.domain.errors import InvalidRequest, Violation
from server.domain.models import Described, ModelDescription
from server.models.handle import Handle, find
from server.models.manager import ModelManager
from server.models.spec import ModelSpec
from server.rpc.convert import model_ref
from server.rpc.service_spec import ANY_ROLE, FREE, MethodSpec, ServiceSpec
from server.tenancy.tenants import Role


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """What is served here, how it is, and how it is replaced.

    `services` says of every service why it does not serve, or ""; `warnings` are what an operator should repair.
    """

    def __init__(
        self,
        manager: ModelManager,
        chat_models: Mapping[str, Handle[Any]],
        git_commit: str,
        *,
        services: Callable[[], Mapping[str, str]],
        warnings: Callable[[], Sequence[str]],
        limits: Mapping[str, int],
    ) -> None:
        self._manager = manager
        self._chat_models = chat_models
        self._services = services
        self._changed = asyncio.Event()
        self._stopping = False
        self._git_commit = git_commit
        self._limits = model_pb2.ServerLimits(**limits)
        self._warnings = warnings
        self._started = datetime.now(UTC)

    @property
    def handles(self) -> list[Handle[Any]]:
        """All models, sorted by name."""
        return sorted(self._handles.values(), key=lambda handle: handle.name)

    @property
    def _handles(self) -> dict[str, Handle[Any]]:
        return {**self._manager.handles, **self._chat_models}

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        """Every model, sorted by name."""
        return model_pb2.ListModelsResponse(models=await self._models())

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        """One model."""
        return model_pb2.GetModelResponse(model=await self._model(find(self._handles, request.name)))

    async def LoadModel(self, request: model_pb2.LoadModelRequest, context: Any) -> model_pb2.LoadModelResponse:
        """Into memory."""
        handle, _ = self._managed(request.name)
        await self._manager.load(request.name, current().deadline)
        return model_pb2.LoadModelResponse(model=await self._model(handle))

    async def UnloadModel(self, request: model_pb2.UnloadModelRequest, context: Any) -> model_pb2.UnloadModelResponse:
        """Out of memory."""
        handle, _ = self._managed(request.name)
        await self._manager.unload(request.name)
        return model_pb2.UnloadModelResponse(model=await self._model(handle))

    async def ReloadModel(self, request: model_pb2.ReloadModelRequest, context: Any) -> model_pb2.ReloadModelResponse:
        """What is on disk now."""
        handle, _ = self._managed(request.name)
        await self._manager.reload(request.name)
        return model_pb2.ReloadModelResponse(model=await self._model(handle))

    async def SetAlias(self, request: model_pb2.SetAliasRequest, context: Any) -> model_pb2.SetAliasResponse:
        """Another version."""
        handle, spec = self._managed(request.name)
        if not spec.has_artefact:
            raise InvalidRequest([Violation("name", "is a hub's model, which has no versions here")])
        await self._manager.set_alias(request.name, request.alias, request.target, force=request.force)
        return model_pb2.SetAliasResponse(model=await self._model(handle))

    async def WatchModels(
        self, request: model_pb2.WatchModelsRequest, context: Any
    ) -> AsyncIterator[model_pb2.WatchModelsResponse]:
        """All models, then those that change, then done. Nothing queues up for a slow reader but the latest."""
        seen = {handle.name: handle.revision for handle in self.handles}
        snapshot = model_pb2.ModelsSnapshot(models=await self._models())
        yield model_pb2.WatchModelsResponse(snapshot=snapshot)
        while not self._stopping:
            changed = self._changed
            for handle in self.handles:
                if handle.revision != seen[handle.name]:
                    seen[handle.name] = handle.revision
                    yield model_pb2.WatchModelsResponse(changed=await self._model(handle))
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
            version=version("quintet"),
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

    def _managed(self, name: str) -> tuple[Handle[Any], ModelSpec[Any]]:
        """A model that can be loaded and replaced by request. Raises ModelNotFound or InvalidRequest."""
        handle = find(self._handles, name)
        if handle.spec is None:
            raise InvalidRequest([Violation("name", "is a language model, which the server's settings start")])
        return handle, handle.spec

    async def _models(self) -> list[model_pb2.Model]:
        return [await self._model(handle) for handle in self.handles]

    async def _model(self, handle: Handle[Any]) -> model_pb2.Model:
        model = model_pb2.Model(
            ref=common_pb2.ModelRef(name=handle.name),
            task=model_pb2.ModelTask.ValueType(handle.task.value if handle.task else 0),
            state=model_pb2.ModelState.ValueType(handle.state.value),
            state_message=handle.message,
        )
        if isinstance(handle.loaded, Described):
            _describe(model, handle.loaded.description)
        if spec := handle.spec:
            model.pinned = spec.settings.pinned
            model.memory_bytes = handle.memory_bytes
            model.load_count, model.failed_load_count = handle.loads, handle.failures
            if spec.has_artefact:
                model.aliases.update(await asyncio.to_thread(self._manager.store.aliases, handle.name))
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
