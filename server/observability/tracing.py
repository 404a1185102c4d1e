"""OpenTelemetry traces of calls, with the names of its semantic conventions (`rpc.*`, `gen_ai.*`).

Each call has a server span, whose parent is the client's span if the client sent a W3C `traceparent`. Its children are
the parts that waited for a lane and computed, and the requests to language models, which get a `traceparent` in turn.
Spans contain no texts and no keys. A thread sends them from a bounded queue; spans that do not fit are dropped. The
OTEL_* variables configure the rest, for instance OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS.

Imported only if tracing is on: it needs the `traces` extra.
"""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.context import Context as OtelContext
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.domain.context import BeginTrace, Context, Metadata, UpstreamTrace
from server.observability.trace_export import TraceExport

_EXPORT_SECONDS = 2.0  # for a batch, with all attempts
_FLUSH_SECONDS = 3.0  # for the remaining spans when the server stops
_LONGEST_VALUE = 256  # characters of an attribute; request ids and answers of endpoints have no limit
_CONTEXT_KEYS = frozenset({"traceparent", "tracestate"})
_NO_CONTEXT = OtelContext()  # other libraries' spans in this process must not become parents of ours
_W3C = TraceContextTextMapPropagator()
# The statuses that are the server's fault. The others are no errors of the span.
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


class _Details(logging.Filter):
    """Keeps the cause of a failure, which the library's exporter only logs, and it logs every batch. Nothing passes."""

    cause = ""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and record.args and "rror details" in str(record.msg):
            details = str(record.args[-1]).rpartition("Failed to connect to remote host: ")[2]
            self.cause = details.partition("\n")[0][:200]
        return False


_DETAILS = _Details()


class _Exporter(OTLPSpanExporter):
    """Notes how it goes."""

    def __init__(self, state: TraceExport) -> None:
        super().__init__(state.endpoint, timeout=_EXPORT_SECONDS)
        self._state = state

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if result is SpanExportResult.SUCCESS:
            self._state.sent()
        else:
            self._state.failed(len(spans), _DETAILS.cause)
        return result


@asynccontextmanager
async def tracing(state: TraceExport) -> AsyncIterator[BeginTrace]:
    """Send spans to the OTLP/gRPC endpoint of `state` while the body runs, and the rest within 3 s after it."""
    resource = Resource(
        {"service.name": "quintet", "service.version": version("quintet"), "host.name": socket.gethostname()}
    )
    provider = TracerProvider(
        resource=resource.merge(OTELResourceDetector().detect()),
        shutdown_on_exit=False,
        span_limits=SpanLimits(max_span_attribute_length=_LONGEST_VALUE),
    )
    logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").addFilter(_DETAILS)
    provider.add_span_processor(BatchSpanProcessor(_Exporter(state)))
    try:
        yield partial(CallTrace, provider.get_tracer("server", version("quintet")))
    finally:
        # Without a collector the library would wait for half a minute.
        flushing = threading.Thread(target=provider.shutdown, daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, _FLUSH_SECONDS)


class CallTrace:
    """Implements `context.Trace`."""

    def __init__(self, tracer: Tracer, call: Context, metadata: Metadata) -> None:
        self._tracer = tracer
        self._epoch = time.time() - time.monotonic()
        carrier = {key: value for key, value in metadata if key in _CONTEXT_KEYS}
        self._span = tracer.start_span(
            call.method[1:],
            _W3C.extract(carrier, _NO_CONTEXT) if carrier else _NO_CONTEXT,
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": call.method[1:], "quintet.request_id": call.request_id},
            start_time=self._instant(call.started),
        )
        self.id = format_trace_id(self._span.get_span_context().trace_id)

    def _instant(self, monotonic: float) -> int:
        """Nanoseconds since the epoch."""
        return int((self._epoch + monotonic) * 1e9)

    def part(self, name: str, arrived: float, queue: float, compute: float) -> None:
        if self._span.is_recording():  # else it is not sampled
            self._tracer.start_span(
                name,
                set_span_in_context(self._span, _NO_CONTEXT),
                attributes={"quintet.queue_seconds": queue, "quintet.compute_seconds": compute},
                start_time=self._instant(arrived),
            ).end()

    def upstream(self, provider: str, model: str, url: str) -> "OtelUpstreamTrace":
        return OtelUpstreamTrace(self._tracer, self._span, provider, model, url)

    def end(self, call: Context, code: str, reason: str) -> None:
        self._span.set_attributes(
            {
                "rpc.response.status_code": code,
                "quintet.tenant": call.caller.tenant,
                "quintet.queue_seconds": call.queue_seconds,
                "quintet.compute_seconds": call.compute_seconds,
                "quintet.upstream_seconds": call.upstream_seconds,
            }
        )
        _end(self._span, "" if code == "OK" else reason or code, is_fault=code in _FAULTS)


class OtelUpstreamTrace(UpstreamTrace):
    def __init__(self, tracer: Tracer, parent: Span, provider: str, model: str, url: str) -> None:
        address = urlsplit(url)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": model,
            "server.address": address.hostname or "",
        }
        if address.port:
            attributes["server.port"] = address.port
        context = set_span_in_context(parent, _NO_CONTEXT)
        self._span = tracer.start_span(f"chat {model}", context, SpanKind.CLIENT, attributes)
        self._began = time.monotonic()
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(self._span, _NO_CONTEXT))
        self.headers = carrier

    def first_token(self) -> None:
        self._span.set_attribute("gen_ai.response.time_to_first_chunk", time.monotonic() - self._began)

    def answered(self, model: str, finish_reason: str | None, usage: tuple[int, int, int] | None) -> None:
        self._span.set_attributes(
            {"gen_ai.response.model": model, "gen_ai.response.finish_reasons": [finish_reason] if finish_reason else []}
        )
        if usage:
            self._span.set_attributes({"gen_ai.usage.input_tokens": usage[0], "gen_ai.usage.output_tokens": usage[1]})

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            problem = "CANCELLED"  # by the client, so no fault
        else:
            problem = "" if error is None else getattr(error, "reason", type(error).__name__)
        _end(self._span, problem, is_fault=isinstance(error, Exception))


def _end(span: Span, problem: str, *, is_fault: bool) -> None:
    if problem:
        span.set_attribute("error.type", problem)
    if is_fault:
        span.set_status(StatusCode.ERROR)
    span.end()
