"""Metrics of language models by upstream: tokens, times and circuit breakers; and of the ledger."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import Metric

from server.observability.families import counters, gauges, histograms
from server.usage.writer import Writer

if TYPE_CHECKING:
    from server.tasks.chat.openai_upstream import Upstream


def ledger(writer: Writer) -> Iterator[Metric]:
    """Whether calls can be accounted."""
    yield gauges(
        "quintet_ledger_away", "1 while it cannot be written to: calls that cost are refused", (), [((), writer.away)]
    )
    yield gauges("quintet_ledger_waiting", "New and settled entries not yet being written", (), [((), writer.waiting)])


def upstreams(found: "Iterable[Upstream]") -> Iterator[Metric]:
    """Tokens and times of complete answers."""
    statistics = [(("chat", each.breaker.name, each.name), each.statistics) for each in list(found)]
    labels = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
    yield histograms(
        "gen_ai_client_token_usage",
        "Tokens of a prompt or an answer",
        (*labels, "gen_ai_token_type"),
        (
            row
            for names, each in statistics
            for row in (((*names, "input"), each.input_tokens), ((*names, "output"), each.output_tokens))
        ),
    )
    yield histograms(
        "gen_ai_client_operation_time_to_first_chunk_seconds",
        "From asking the endpoint to its first token",
        labels,
        ((names, each.time_to_first_token) for names, each in statistics),
    )
    yield histograms(
        "gen_ai_client_operation_duration_seconds",
        "From asking the endpoint to the end of a complete answer",
        labels,
        ((names, each.durations) for names, each in statistics),
    )


def breakers(found: "Iterable[Upstream]") -> Iterator[Metric]:
    """Circuit breakers by provider."""
    states = {(each.breaker.name,): each.breaker for each in list(found)}.items()
    yield gauges(
        "quintet_provider_breaker_state",
        "0 closed: the provider is asked; 1 half open: one call probes it; 2 open: it is not asked",
        ("gen_ai_provider_name",),
        ((name, breaker.state.value) for name, breaker in states),
    )
    yield counters(
        "quintet_provider_breaker_openings",
        "How often it opened because the provider failed repeatedly",
        ("gen_ai_provider_name",),
        ((name, breaker.opened) for name, breaker in states),
    )
