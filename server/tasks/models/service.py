"""quintet.v1.ModelService"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

from quintet.v1 import common_pb2, model_pb2_grpc
from quintet.v1 import model_pb2 as pb

from server.domain.context import current
from server.domain.errors import InvalidRequest, Violation
from server.domain.threads import on_thread
from server.models.handle import Handle, find
from server.models.manager import ModelManager
from server.rpc.access import MANAGES_MODELS, SEES_MODELS, SEES_SERVER
from server.rpc.convert import by_name, model_ref
from server.rpc.service_spec import ANY_ROLE, FREE, MethodSpec, ServiceSpec
from server.tenancy.tenants import Role

_HIDDEN = "not serving; the operator can see why"


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Describes, loads and replaces the models of the manager, and describes the `chat_models`.

    `services` says of every name in grpc.health.v1 why it does not serve, or ""; `required` are the names of services
    without which the server is not complete; `warnings` are what an operator should repair.
    """

    def __init__(
        self,
        manager: ModelManager,
        chat_models: Mapping[str, Handle[Any]],
        git_commit: str,
        *,
        services: Callable[[], Mapping[str, str]],
        required: Callable[[], Collection[str]],
        warnings: Callable[[], Sequence[str]],
        limits: Mapping[str, int],
    ) -> None:
        self._manager = manager
        self._chat_models = chat_models
        self._git_commit = git_commit
        self._services = services
        self._required = required
        self._warnings = warnings
        self._limits = pb.ServerLimits(**limits)
        self._started = datetime.now(UTC)
        self._changed = asyncio.Event()
        self._stopping = False

    @property
    def handles(self) -> dict[str, Handle[Any]]:
        """All models, sorted by name."""
        return dict(sorted({**self._manager.handles, **self._chat_models}.items()))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=await self._models())

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=await self._model(find(self._visible(), request.name)))

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> pb.LoadModelResponse:
        handle = self._managed(request.name)
        await self._manager.load(request.name, current().deadline)
        return pb.LoadModelResponse(model=await self._model(handle))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Any) -> pb.UnloadModelResponse:
        handle = self._managed(request.name)
        await self._manager.unload(request.name)
        return pb.UnloadModelResponse(model=await self._model(handle))

    async def ReloadModel(self, request: pb.ReloadModelRequest, context: Any) -> pb.ReloadModelResponse:
        """The files on disk now."""
        handle = self._managed(request.name)
        await self._manager.reload(request.name)
        return pb.ReloadModelResponse(model=await self._model(handle))

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:
        handle = self._managed(request.name)
        if not (handle.spec and handle.spec.has_artefact):
            raise InvalidRequest([Violation("name", "is a hub's model, which has no versions here")])
        await self._manager.set_alias(request.name, request.alias, request.target, force=request.force)
        return pb.SetAliasResponse(model=await self._model(handle))

    async def WatchModels(self, request: pb.WatchModelsRequest, context: Any) -> AsyncIterator[pb.WatchModelsResponse]:
        """All models, then those that change, then done. A slow reader gets the latest state, not every change."""
        seen = {name: handle.revision for name, handle in self.handles.items()}
        yield pb.WatchModelsResponse(snapshot=pb.ModelsSnapshot(models=await self._models()))
        while not self._stopping:
            changed = self._changed
            for name, handle in self.handles.items():
                if handle.revision != seen[name]:
                    seen[name] = handle.revision
                    yield pb.WatchModelsResponse(changed=await self._model(handle))
            if changed is self._changed:
                await changed.wait()
        yield pb.WatchModelsResponse(done=pb.WatchModelsDone())

    def wake(self) -> None:
        """A model may have changed: tell the watchers."""
        self._changed.set()
        self._changed = asyncio.Event()

    def stop(self) -> None:
        """End every watch; the server would wait for them when it stops."""
        self._stopping = True
        self.wake()

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        """Versions, limits and services.

        Only admins see the warnings, which may name other tenants. Why a service is down is for callers that may use it
        and all models.
        """
        caller = current().caller
        times: dict[str, Any] = {"start_time": self._started, "current_time": datetime.now(UTC)}
        return pb.GetServerInfoResponse(
            version=version("quintet"),
            api_version="quintet.v1",
            git_commit=self._git_commit,
            limits=self._limits,
            services=[
                pb.ServiceStatus(
                    name=name,
                    serving=not message,
                    message=message if not message or caller.is_told_of(_short(name)) else _HIDDEN,
                    required=name in self._required(),
                )
                for name, message in sorted(self._services().items())
                if "/" not in name or caller.is_told_of(_short(name))  # that of a single model
            ],
            warnings=self._warnings() if caller.is_admin else (),
            **times,
        )

    def _managed(self, name: str) -> Handle[Any]:
        """A model that can be loaded and replaced by request. Raises ModelNotFound or InvalidRequest."""
        handle = find(self.handles, name)
        if handle.spec is None:
            raise InvalidRequest([Violation("name", "is a language model, which the server's settings start")])
        return handle

    def _visible(self) -> dict[str, Handle[Any]]:
        """The models that the caller may see; the others do not exist for it."""
        caller = current().caller
        return {name: handle for name, handle in self.handles.items() if caller.sees_model(name)}

    async def _models(self) -> list[pb.Model]:
        return [await self._model(handle) for handle in self._visible().values()]

    async def _model(self, handle: Handle[Any]) -> pb.Model:
        model = pb.Model(ref=common_pb2.ModelRef(name=handle.name))
        if known := handle.description:
            model = by_name(pb.Model, known, ref=model_ref(known.identity))
        model.task = pb.ModelTask.ValueType(handle.task or 0)
        model.state, model.state_message = pb.ModelState.ValueType(handle.state.value), handle.message
        if handle.wanted:
            model.wanted_version, model.wanted_message = handle.wanted
        if spec := handle.spec:
            model.pinned = spec.settings.pinned
            model.memory_bytes = handle.memory_bytes
            model.load_count, model.failed_load_count = handle.loads, handle.failures
            if spec.has_artefact:
                model.aliases.update(await on_thread("aliases", partial(self._manager.store.aliases, handle.name)))
        return model


def _short(health_name: str) -> str:
    """ChatService of "quintet.v1.ChatService", also with the name of a model behind it."""
    return health_name.partition("/")[0].rpartition(".")[2]


def spec(servicer: ModelServicer) -> ServiceSpec:
    changes = ("LoadModel", "UnloadModel", "ReloadModel", "SetAlias", "WatchModels")
    return ServiceSpec(
        servicer,
        {
            "GetServerInfo": MethodSpec(ANY_ROLE, FREE, (SEES_SERVER,)),
            **dict.fromkeys(("ListModels", "GetModel"), MethodSpec(ANY_ROLE, FREE, (SEES_MODELS,))),
            **dict.fromkeys(changes, MethodSpec(Role.ADMIN, FREE, (MANAGES_MODELS,))),
        },
    )
