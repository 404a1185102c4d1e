"""The composition root: settings in, rooms wired, services in one table, started, stopped.

The port opens first, with every service NOT_SERVING; a service is SERVING once what it needs is loaded. Stopping:
NOT_SERVING, a pause in which load balancers notice, no new calls, running calls get their grace, then everything is
closed in the reverse order of its making.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import AnyHttpUrl

from server.domain.context import BeginTrace
from server.domain.models import ModelTask
from server.domain.reloading_file import ReloadingFile
from server.inference.scheduler import Scheduler
from server.inference.text_models import text_model
from server.models.handle import Handle
from server.models.manager import ModelManager
from server.models.registry import open_store
from server.models.spec import ModelSettings, ModelSpec, imported
from server.observability.trace_export import TraceExport
from server.rpc.admission import Admission
from server.rpc.anonymous import Anonymous
from server.rpc.auth import TenantAuth
from server.rpc.certificates import Certificates
from server.rpc.grpc_server import make_server
from server.rpc.health import Health
from server.rpc.listener import CannotStart, hang_up, listen, options
from server.rpc.pipeline import Registrar
from server.rpc.reflection import add_reflection
from server.rpc.service_spec import ServiceSpec, methods_by_path, touches_by_path
from server.rpc.tenant_limits import TenantLimits
from server.settings import Settings, unknown_variables
from server.tasks.analysis import service as analysis
from server.tasks.chat import service as chat
from server.tasks.chat.registry import ChatModels
from server.tasks.classification import service as classification
from server.tasks.embedding import service as embedding
from server.tasks.models import service as administration
from server.tasks.pricing import service as pricing
from server.tasks.rag import models as rag_models
from server.tasks.rag import service as rag
from server.tasks.usage import service as usage
from server.tenancy.limits.limiter import open_limiter
from server.tenancy.tenants_file import TenantsFile
from server.usage.ledger import SqlLedger
from server.usage.reader import SqlReader

log = logging.getLogger(__name__)
CLASSIFIERS = ("sentiment", "topics")
HEALTH_SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


@dataclass(frozen=True)
class App:
    """A running server."""

    address: str
    health: Health
    services: tuple[ServiceSpec, ...]
    handles: Iterable[Handle[Any]]  # sorted by name
    loaded: Callable[[], Awaitable[None]]
    no_pause: asyncio.Event  # set: the stop does not pause for load balancers


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[App]:
    """Serve while the body runs. Raises CannotStart, and BadFile for tenants, certificates and providers."""
    async with AsyncExitStack() as stack:
        begin_trace, traces = await stack.enter_async_context(_tracing(settings.traces))
        reader = SqlReader(settings.ledger_target)
        stack.push_async_callback(reader.close)
        # Limits and ledger are closed after the server and the models: every call settles.
        redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
        limiting = open_limiter(redis_url, settings.replicas, reader.spent)
        limiter = await stack.enter_async_context(limiting) if settings.tenants else None
        ledger = await stack.enter_async_context(
            aclosing(
                SqlLedger(
                    settings.ledger_target,
                    folder=settings.data / "state",
                    retention=timedelta(days=settings.ledger_retention_days),
                )
            )
        )

        schedulers = {
            "models": Scheduler(settings.lanes, settings.lane_queue),
            "spacy": Scheduler(1, settings.lane_queue),  # one lane, because spaCy holds the GIL
        }
        for scheduler in schedulers.values():
            stack.callback(scheduler.close)
        store = open_store(settings.data / "models", settings.registry)
        manager = await stack.enter_async_context(aclosing(ModelManager(store, settings.memory_budget)))
        chats = ChatModels(settings, manager, ledger)
        stack.push_async_callback(chats.close)
        certificate, key = settings.tls_cert, settings.tls_key
        certificates = Certificates(certificate, key, settings.tls_client_ca) if certificate and key else None
        files: list[ReloadingFile[Any]] = [*([certificates] if certificates else []), *chats.key_files]
        models = administration.ModelServicer(
            manager,
            {} if chats.is_off else chats.handles,
            settings.git_commit,
            services=lambda: health.messages,
            required=lambda: health.required,
            warnings=lambda: [
                *unknown_variables(os.environ),
                *(warning for file in files for warning in file.warnings),
                *manager.follower.warnings(),
                *rag_models.warnings(collections),
            ],
            limits=settings.model_dump(
                include={"max_request_bytes", "max_concurrent_calls", "default_deadline_seconds"}
            ),
        )
        services, collections = _services(
            settings, manager, chats, schedulers, (administration.spec(models), usage.spec(reader, ledger.watchers))
        )

        auth, limits = None, None
        if settings.tenants and limiter:
            tenants = TenantsFile(settings.tenants, [service.name for service in services])
            files.append(tenants)
            costs = {path: method.cost for path, (_, _, method) in methods_by_path(services).items() if method.cost}
            auth, limits = TenantAuth(tenants, services), TenantLimits(limiter, tenants.tenant, costs)
        for file in files:
            await stack.enter_async_context(file.reloading())
        health = Health(
            [name for each in services for name, _, _ in each.health()],
            {each.full_name for each in services if each.required},
        )
        admission = Admission(
            settings.max_concurrent_calls,
            settings.default_deadline_seconds,
            max_wait_seconds=settings.max_wait_seconds,
            lanes=settings.lanes,
            lanes_of={service.full_name: service.lanes for service in services if service.lanes},
        )

        server = make_server(options(settings.max_request_bytes))
        registrar = Registrar(
            server,
            admission,
            settings.max_request_bytes,
            identify=auth.identify if auth else None,
            touches=touches_by_path(services),
            limits=limits,
            begin_trace=begin_trace,
        )
        for service in services:
            service.register(registrar)
        anonymous, address = _open_port(server, settings, health, services, certificates)
        if settings.metrics_port is not None:
            from server.observability.metrics import Collector, serving  # their libraries take a while to import

            collector = Collector(
                admission,
                schedulers,
                list(models.handles.values()),
                manager.memory,
                upstreams=chats.upstreams,
                auth_refused=auth.refused if auth else {},
                files=files,
                limits=limits,
                ledger=ledger.writer,
                traces=traces,
                registry=manager.mirror,
                collections=partial(rag_models.faults, collections),
            )
            stack.enter_context(serving(settings.host, settings.metrics_port, collector))
        await server.start()
        log.info("listening on %s%s", address, " (TLS only)" if certificates else "")
        app = App(address, health, services, models.handles.values(), manager.loaded, asyncio.Event())
        stack.push_async_callback(_stop, server, registrar, anonymous, settings, app)
        # First, end streams that would not end by themselves, or not soon.
        for end in (partial(rag_models.end_reindexing, collections), ledger.watchers.end, models.stop, health.stop):
            stack.callback(end)

        def update() -> None:
            for name, message, is_blocking in chain.from_iterable(each.health() for each in services):
                health.set(name, message, is_blocking=is_blocking)
            models.wake()

        manager.on_change = update
        update()
        manager.start(chats.handles.values())
        chats.start()
        yield app


def _services(
    settings: Settings,
    manager: ModelManager,
    chats: ChatModels,
    schedulers: dict[str, Scheduler],
    others: Iterable[ServiceSpec],
) -> tuple[tuple[ServiceSpec, ...], Handle[Any]]:
    """The models and what is made of them: a row for each service that uses them, `others`, and the collections."""
    scheduler, cache = schedulers["models"], settings.result_cache

    def wanted(name: str) -> ModelSettings:
        return settings.models.get(name, ModelSettings())

    def add(name: str, task: ModelTask, prepare: Callable[[], Any], **options: Any) -> Handle[Any]:
        return manager.add(ModelSpec(name, task, prepare, wanted(name), **options))

    def add_text(name: str, task: ModelTask) -> Handle[Any]:
        return manager.add(text_model(name, task, wanted(name), scheduler, cache))

    pricer = imported("server.tasks.pricing.engine:HousePricer", scheduler)
    prices = add("house-prices", ModelTask.REGRESSION, pricer)
    spacy = imported("server.tasks.analysis.spacy_parser:SpacyParser", schedulers["spacy"], cache_bytes=cache)
    parser = add("en_core_web_sm", ModelTask.LINGUISTICS, spacy, out_of_process=True)
    fasttext = imported("server.tasks.analysis.language:FastTextIdentifier", scheduler)
    languages = add("lid.176", ModelTask.LANGUAGE_ID, fasttext)
    embedder = add_text("embedder", ModelTask.EMBEDDING)
    cross_encoder = imported("server.inference.reranker:OnnxReranker", scheduler)
    reranker = add("reranker", ModelTask.RERANKING, cross_encoder) if settings.rerank else None
    names = dict.fromkeys((*CLASSIFIERS, *settings.models))  # a name that only the settings have is a classifier
    classifiers = {name: add_text(name, ModelTask.CLASSIFICATION) for name in names if name not in manager.handles}

    opened = partial(rag_models.open_collections, settings.data / "index", scheduler, embedder, reranker)
    collections = manager.derive("collections", opened, depends_on=(embedder,))
    answers = manager.derive("answers", rag_models.make_answerer, depends_on=(collections, chats.default))
    services = (
        classification.spec(classifiers, required=CLASSIFIERS),
        pricing.spec(prices),
        chat.spec(chats.handles, required=not chats.is_off),
        rag.spec(
            collections,
            answers,
            chats.default,
            retrieval=tuple(each.name for each in (embedder, reranker) if each),
            reranker=reranker,
            answers_needed=not chats.is_off,
        ),
        embedding.spec({embedder.name: embedder}),
        analysis.spec(parser, languages, classifiers),
        *others,
    )
    return services, collections


def _open_port(
    server: grpc.aio.Server,
    settings: Settings,
    health: Health,
    services: Iterable[ServiceSpec],
    certificates: Certificates | None,
) -> tuple[Anonymous, str]:
    """Add health and reflection, which bypass what happens around other calls; returns the address, too."""
    anonymous = Anonymous(server)
    health_pb2_grpc.add_HealthServicer_to_server(health, anonymous)
    if settings.reflection:
        add_reflection(anonymous, [*(each.full_name for each in services), HEALTH_SERVICE])
    if settings.tenants and not certificates and not settings.is_local:
        log.warning("API keys cross the network unencrypted: set QUINTET_TLS_CERT and QUINTET_TLS_KEY")
    return anonymous, listen(server, settings.host, settings.port, certificates)


@asynccontextmanager
async def _tracing(endpoint: AnyHttpUrl | None) -> AsyncIterator[tuple[BeginTrace | None, TraceExport | None]]:
    """What begins a trace, and how sending them goes; None without an endpoint."""
    if endpoint is None:
        yield None, None
        return
    try:
        from server.observability.tracing import tracing
    except ModuleNotFoundError as error:
        raise CannotStart(f'QUINTET_TRACES needs more packages ({error.name}): pip install "quintet[traces]"') from None
    state = TraceExport(str(endpoint))
    async with tracing(state) as begin_trace:
        yield begin_trace, state


async def _stop(
    server: grpc.aio.Server,
    registrar: Registrar,
    anonymous: Anonymous,
    settings: Settings,
    app: App,
) -> None:
    """Until no call runs any more. docs/operations.md says what clients see."""
    log.info("stopping: running calls may finish within %g s", settings.shutdown_grace_seconds)
    with suppress(TimeoutError):
        await asyncio.wait_for(app.no_pause.wait(), settings.shutdown_pause_seconds)
    anonymous.stop()
    await registrar.drain(settings.shutdown_grace_seconds)
    hang_up(int(app.address.rpartition(":")[2]))
    await server.stop(None)
    log.info("no calls run any more")
