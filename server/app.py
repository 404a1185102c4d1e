"""The composition root: the only file that knows everything. Engines are built in `server/builders.py`.

Starting: the port opens first, every service NOT_SERVING; models load aside; a service is SERVING once what it
needs is warm. Stopping: NOT_SERVING, a pause in which load balancers notice, no new calls, running calls get their
grace, then everything is closed in the reverse order of its making.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from quintet.v1 import (
    analysis_pb2_grpc,
    chat_pb2_grpc,
    classification_pb2_grpc,
    model_pb2_grpc,
    pricing_pb2_grpc,
    rag_pb2_grpc,
    usage_pb2_grpc,
)

from server.builders import Engines
from server.models.handle import Slot, State
from server.rpc.access_control import AccessControl
from server.rpc.admission import Admission
from server.rpc.health import Health
from server.rpc.listener import CannotStart, PortInUse
from server.rpc.pipeline import Registrar
from server.rpc.reflection import add_reflection
from server.rpc.tenant_limits import TenantLimits
from server.settings import Settings
from server.tasks.analysis.service import AnalysisServicer
from server.tasks.chat.service import ChatServicer
from server.tasks.classification.service import ClassificationServicer
from server.tasks.models.service import ModelServicer, Row
from server.tasks.pricing.service import PricingServicer
from server.tasks.rag.service import RagServicer
from server.tasks.usage.service import UsageServicer
from server.tenancy.limits.limiter import open_limiter
from server.usage.reader import SqlReader
from server.usage.sql import SqlLedger

if TYPE_CHECKING:  # it needs packages that are not always there
    from server.observability.tracing import Traces

log = logging.getLogger(__name__)
HEALTH_SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
# Go clients ping every 10 s; with the default of one ping in 5 minutes they are sent away with too_many_pings.
# One client's channel stays on one server for as long as it lives, so connections end now and then.
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 10 * 60_000),
)


@dataclass(frozen=True)
class Service:
    """A row of the service table: it serves while all of `needs` are ready and none of `awaits` is loading."""

    name: str
    needs: tuple[Slot[Any], ...] = ()
    awaits: tuple[Slot[Any], ...] = ()

    def trouble(self) -> str:
        """Why it does not serve, what an operator must mend before what passes by itself; empty if it serves."""
        may_fail = [slot for slot in self.awaits if slot.state is not State.FAILED]
        troubled = [slot for slot in (*self.needs, *may_fail) if slot.trouble()]
        troubled.sort(key=lambda slot: slot.state is not State.FAILED)
        return troubled[0].trouble() if troubled else ""


@dataclass(frozen=True)
class App:
    """A running server."""

    address: str
    door: AccessControl
    health: Health
    loaded: Callable[[], Awaitable[None]]
    slots: tuple[Slot[Any], ...]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[App]:
    """Serve while the body runs. Raises CannotStart, BadFile for tenants and certificates, and BadProviders."""
    async with AsyncExitStack() as stack:
        traces = await stack.enter_async_context(_traces(str(settings.traces))) if settings.traces else None
        door = await stack.enter_async_context(AccessControl.create(settings))
        reader = SqlReader(settings.ledger_target)
        stack.push_async_callback(reader.close)
        # Limits and ledger are closed after the server has stopped and the engines with it: every call settles.
        limiter = None
        if door.tenants:
            redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
            limiter = await stack.enter_async_context(open_limiter(redis_url, settings.replicas, reader.spent))
        ledger = await stack.enter_async_context(SqlLedger.running(settings.ledger_target))
        engines = await stack.enter_async_context(Engines.create(settings, ledger))
        services = _service_table(engines)
        required = {service.name for service in services if engines.chat not in service.needs or not engines.llm_is_off}
        health = Health([service.name for service in services], required)
        admission = Admission(
            settings.max_concurrent_calls,
            settings.default_deadline_seconds,
            max_wait_seconds=settings.max_wait_seconds,
            lanes=settings.lanes,
            lanes_of={"quintet.v1.AnalysisService": 1},  # nearly all of its compute is spaCy's, which has one lane
        )
        server = grpc.aio.server(
            # Twice the limit, so that what is a little too large gets an answer with details.
            options=(*_OPTIONS, ("grpc.max_receive_message_length", 2 * settings.max_request_bytes)),
        )
        models = _model_servicer(settings, engines, health, door)
        chat = ChatServicer(engines.chats)
        rag = RagServicer(engines.retriever, engines.answerer, engines.chat.name)
        limits = None
        if door.tenants and limiter:
            limits = TenantLimits(limiter, door.tenants.tenant, {**chat.estimates(), **rag.estimates()})
        registrar = Registrar(
            server, admission, settings.max_request_bytes, auth=door.auth, limits=limits, traces=traces
        )
        _register(registrar, engines, chat=chat, rag=rag, models=models, usage=UsageServicer(reader, ledger))
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        if settings.reflection:
            add_reflection(server, [*health.messages, HEALTH_SERVICE])
        address = door.open(server)
        if settings.metrics_port is not None:
            _publish(stack, settings.metrics_port, admission, engines, door=door, limits=limits, ledger=ledger)
        await server.start()
        log.info("listening on %s", address)
        stack.push_async_callback(_stop, server, health, models, admission, settings)
        stack.callback(ledger.end_watches)  # before the server is stopped: an open one would hold it

        def update() -> None:
            for service in services:
                health.set(service.name, service.trouble())
            models.wake()

        engines.on_change = update
        update()
        engines.load()
        yield App(address, door, health, engines.loaded, tuple(slot for slot, _ in engines.models))


def _service_table(engines: Engines) -> list[Service]:
    """One row a service. What it needs must be ready; what it awaits may have failed without taking it down."""
    classifiers = tuple(engines.classifiers.values())
    asking = () if engines.llm_is_off else (engines.answerer, engines.chat)
    return [
        Service("quintet.v1.ClassificationService", needs=classifiers),
        Service("quintet.v1.PricingService", needs=(engines.pricer,)),
        Service("quintet.v1.ChatService", needs=(engines.chat,)),
        Service("quintet.v1.RagService", needs=(engines.retriever, *asking)),
        Service("quintet.v1.AnalysisService", needs=(engines.linguist, engines.languages), awaits=classifiers),
        Service("quintet.v1.ModelService"),
        Service("quintet.v1.UsageService"),
    ]


def _model_servicer(settings: Settings, engines: Engines, health: Health, door: AccessControl) -> ModelServicer:
    return ModelServicer(
        [Row(slot, task) for slot, task in engines.models],
        engines.pool,
        health,
        version=version("quintet"),
        git_commit=settings.git_commit,
        warnings=door.problems,
        limits={
            "max_request_bytes": settings.max_request_bytes,
            "max_concurrent_calls": settings.max_concurrent_calls,
            "default_deadline_seconds": settings.default_deadline_seconds,
        },
    )


def _register(
    registrar: Any,
    engines: Engines,
    *,
    chat: ChatServicer,
    rag: RagServicer,
    models: ModelServicer,
    usage: UsageServicer,
) -> None:
    servicers: Mapping[Callable[[Any, Any], None], object] = {
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server: ClassificationServicer(
            engines.classifiers
        ),
        pricing_pb2_grpc.add_PricingServiceServicer_to_server: PricingServicer(engines.pricer),
        chat_pb2_grpc.add_ChatServiceServicer_to_server: chat,
        rag_pb2_grpc.add_RagServiceServicer_to_server: rag,
        analysis_pb2_grpc.add_AnalysisServiceServicer_to_server: AnalysisServicer(engines.analyzer()),
        model_pb2_grpc.add_ModelServiceServicer_to_server: models,
        usage_pb2_grpc.add_UsageServiceServicer_to_server: usage,
    }
    for add, servicer in servicers.items():
        add(servicer, registrar)


def _traces(endpoint: str) -> "AbstractAsyncContextManager[Traces]":
    try:
        from server.observability.tracing import Traces
    except ModuleNotFoundError as error:
        raise CannotStart(f'QUINTET_TRACES needs more packages ({error.name}): pip install "quintet[traces]"') from None
    return Traces.running(endpoint)


def _publish(
    stack: AsyncExitStack,
    port: int,
    admission: Admission,
    engines: Engines,
    *,
    door: AccessControl,
    limits: TenantLimits | None,
    ledger: SqlLedger,
) -> None:
    from server.observability import metrics  # whoever publishes nothing need not wait for its libraries

    collector = metrics.Collector(
        admission,
        engines.lanes,
        [slot for slot, _ in engines.models],
        engines.pool.residency.budget,
        legs=engines.legs,
        auth_refused=door.refused,
        followed=door.followed,
        limits=limits,
        ledger=ledger,
    )
    try:
        found = stack.enter_context(metrics.serving(door.settings.host, port, collector))
    except OSError:
        raise PortInUse(
            f"cannot publish metrics on {door.settings.host}:{port}: in use? Set QUINTET_METRICS_PORT to another port"
        ) from None
    log.info("metrics on http://%s:%d/metrics", door.settings.host, found)


async def _stop(
    server: grpc.aio.Server, health: Health, models: ModelServicer, admission: Admission, settings: Settings
) -> None:
    log.info("stopping: %d calls run and may finish within %g s", admission.running, settings.shutdown_grace_seconds)
    health.stop()
    models.stop()
    await asyncio.sleep(settings.shutdown_pause_seconds)
    admission.stopping = True
    await server.stop(settings.shutdown_grace_seconds)
    log.info("no call runs any more")
