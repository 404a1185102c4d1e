"""The composition root: the only file that knows everything. Engines are built in `server/builders.py`.

Starting: the port opens first, every service NOT_SERVING; models load aside; a service is SERVING once what it
needs is warm. Stopping: NOT_SERVING, a pause in which load balancers notice, no new calls, running calls get their
grace, then everything is closed in the reverse order of its making.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.builders import Engines
from server.domain.reloading_file import ReloadingFile
from server.models.handle import Slot
from server.rpc.admission import Admission
from server.rpc.auth import TenantAuth
from server.rpc.health import Health
from server.rpc.listener import CannotStart, Certificates, PortInUse, listen
from server.rpc.pipeline import Registrar
from server.rpc.reflection import add_reflection
from server.rpc.service_spec import ServiceSpec, methods_by_path
from server.rpc.tenant_limits import TenantLimits
from server.settings import Settings
from server.tasks.analysis import service as analysis
from server.tasks.chat import service as chat
from server.tasks.classification import service as classification
from server.tasks.models import service as model
from server.tasks.models.service import ModelServicer, Row
from server.tasks.pricing import service as pricing
from server.tasks.rag import service as rag
from server.tasks.usage import service as usage
from server.tenancy.limits.limiter import open_limiter
from server.tenancy.tenants_file import TenantsFile
from server.usage.ledger import SqlLedger
from server.usage.reader import SqlReader

if TYPE_CHECKING:  # they need packages that are not always there
    from server.observability.metrics import Collector
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
class App:
    """A running server. `access` says who may call, for people."""

    address: str
    access: str
    is_encrypted: bool
    requires_keys: bool
    health: Health
    services: tuple[ServiceSpec, ...]
    loaded: Callable[[], Awaitable[None]]
    slots: tuple[Slot[Any], ...]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[App]:
    """Serve while the body runs. Raises CannotStart, BadFile for tenants and certificates, and BadProviders."""
    async with AsyncExitStack() as stack:
        traces = await stack.enter_async_context(_traces(str(settings.traces))) if settings.traces else None
        certificates = await _certificates(stack, settings)
        reader = SqlReader(settings.ledger_target)
        stack.push_async_callback(reader.close)
        # Limits and ledger are closed after the server has stopped and the engines with it: every call settles.
        limiter = None
        if settings.tenants:
            redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
            limiter = await stack.enter_async_context(open_limiter(redis_url, settings.replicas, reader.spent))
        ledger = await stack.enter_async_context(SqlLedger.running(settings.ledger_target))
        engines = await stack.enter_async_context(Engines.create(settings, ledger))
        files: list[ReloadingFile[Any]] = [certificates] if certificates else []
        models = _model_servicer(
            settings,
            engines,
            services=lambda: health.messages,
            warnings=lambda: [file.problem for file in files if file.problem],
        )
        services = _services(engines, models, reader, ledger)
        tenants, auth, limits = None, None, None
        if settings.tenants and limiter:
            tenants = TenantsFile(settings.tenants, [service.name for service in services])
            await stack.enter_async_context(tenants.reloading())
            files.append(tenants)
            auth = TenantAuth(tenants, services)
            costs = {path: method.cost for path, (_, _, method) in methods_by_path(services).items() if method.cost}
            limits = TenantLimits(limiter, tenants.tenant, costs)
        health = Health(
            [service.full_name for service in services],
            {service.full_name for service in services if service.required},
        )
        admission = Admission(
            settings.max_concurrent_calls,
            settings.default_deadline_seconds,
            max_wait_seconds=settings.max_wait_seconds,
            lanes=settings.lanes,
            lanes_of={service.full_name: service.lanes for service in services if service.lanes},
        )
        server = grpc.aio.server(
            # Twice the limit, so that what is a little too large gets an answer with details.
            options=(*_OPTIONS, ("grpc.max_receive_message_length", 2 * settings.max_request_bytes)),
        )
        registrar = Registrar(server, admission, settings.max_request_bytes, auth=auth, limits=limits, traces=traces)
        for service in services:
            service.register(service.servicer, registrar)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        if settings.reflection:
            add_reflection(server, [*health.messages, HEALTH_SERVICE])
        address = listen(server, settings.host, settings.port, certificates)
        if tenants and not certificates and not settings.is_local:
            log.warning("API keys cross the network unencrypted: set QUINTET_TLS_CERT and QUINTET_TLS_KEY")
        if settings.metrics_port is not None:
            from server.observability.metrics import Collector  # its libraries take a while to import

            collector = Collector(
                admission,
                engines.lanes,
                [slot for slot, _ in engines.models],
                engines.pool.residency.budget,
                upstreams=engines.upstreams,
                auth_refused=auth.refused if auth else {},
                files=files,
                limits=limits,
                ledger=ledger,
            )
            _publish(stack, settings, settings.metrics_port, collector)
        await server.start()
        log.info("listening on %s", address)
        stack.push_async_callback(_stop, server, health, models, admission, settings)
        stack.callback(ledger.end_watches)  # before the server is stopped: an open one would hold it

        def update() -> None:
            for service in services:
                health.set(service.full_name, service.trouble())
            models.wake()

        engines.on_change = update
        update()
        engines.load()
        yield App(
            address,
            _access(settings),
            certificates is not None,
            tenants is not None,
            health,
            services,
            engines.loaded,
            tuple(slot for slot, _ in engines.models),
        )


def _services(engines: Engines, models: ModelServicer, reader: SqlReader, ledger: SqlLedger) -> tuple[ServiceSpec, ...]:
    """The services of quintet.v1, a row each."""
    classifiers = tuple(engines.classifiers.values())
    asking = () if engines.llm_is_off else (engines.answerer, engines.chat)
    return (
        classification.spec(engines.classifiers),
        pricing.spec(engines.pricer),
        chat.spec(engines.chats, required=not engines.llm_is_off),
        rag.spec(engines.collections, engines.answerer, engines.chat.name, needs=(engines.collections, *asking)),
        analysis.spec(engines.analyzer(), needs=(engines.parser, engines.languages), waits_for=classifiers),
        model.spec(models),
        usage.spec(reader, ledger),
    )


def _model_servicer(
    settings: Settings,
    engines: Engines,
    *,
    services: Callable[[], Mapping[str, str]],
    warnings: Callable[[], Sequence[str]],
) -> ModelServicer:
    return ModelServicer(
        [Row(slot, task) for slot, task in engines.models],
        engines.pool,
        services,
        version=version("quintet"),
        git_commit=settings.git_commit,
        warnings=warnings,
        limits={
            "max_request_bytes": settings.max_request_bytes,
            "max_concurrent_calls": settings.max_concurrent_calls,
            "default_deadline_seconds": settings.default_deadline_seconds,
        },
    )


async def _certificates(stack: AsyncExitStack, settings: Settings) -> Certificates | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    certificates = Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    await stack.enter_async_context(certificates.reloading())
    return certificates


def _access(settings: Settings) -> str:
    """Who may call, for people."""
    if settings.tenants:
        return f"Callers need an API key or a certificate of a tenant in {settings.tenants}."
    if settings.is_local:
        return "Authentication is off (QUINTET_TENANTS is not set); only this machine can call."
    return "Authentication is off (QUINTET_ALLOW_ANONYMOUS); every client that reaches the port can call."


def _traces(endpoint: str) -> "AbstractAsyncContextManager[Traces]":
    try:
        from server.observability.tracing import Traces
    except ModuleNotFoundError as error:
        raise CannotStart(f'QUINTET_TRACES needs more packages ({error.name}): pip install "quintet[traces]"') from None
    return Traces.running(endpoint)


def _publish(stack: AsyncExitStack, settings: Settings, port: int, collector: "Collector") -> None:
    from server.observability.metrics import serving

    try:
        found = stack.enter_context(serving(settings.host, port, collector))
    except OSError:
        raise PortInUse(
            f"cannot publish metrics on {settings.host}:{port}: in use? Set QUINTET_METRICS_PORT to another port"
        ) from None
    log.info("metrics on http://%s:%d/metrics", settings.host, found)


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
