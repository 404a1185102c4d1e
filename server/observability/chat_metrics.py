"""Metrics of language models by upstream: tokens, times and circuit breakers; and of the ledger."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from prometheus_client import Metric

from server.observability.families import counters, gauges, histograms
from server.usage.writer import Writer

if TYPE_CHECKING:
    from server.tasks.chat.openai_upstream import Upstream


def ledger(writer: Writer) -> Iterator[Metric]:
    """Whether calls can be accounted."""
    what = "1 while it cannot be written to: calls that cost are refused"
    yield gauges("quintet_ledger_away", what, "", {(): writer.away})
    yield gauges("quintet_ledger_waiting", "New and settled entries not yet being written", "", {(): writer.waiting})


def upstreams(found: "Collection[Upstream]") -> Iterator[Metric]:
    """Tokens and times of complete answers, and circuit breakers by provider."""
    statistics = {("chat", each.breaker.name, each.name): each.statistics for each in found}
    labels = "gen_ai_operation_name gen_ai_provider_name gen_ai_request_model"
    tokens = {
        (*names, kind): tokens
        for names, each in statistics.items()
        for kind, tokens in (("input", each.input_tokens), ("output", each.output_tokens))
    }
    what = "Tokens of a prompt or an answer"
    yield histograms("gen_ai_client_token_usage", what, f"{labels} gen_ai_token_type", tokens)
    first = {names: each.time_to_first_token for names, each in statistics.items()}
    what = "From asking the endpoint to its first token"
    yield histograms("gen_ai_client_operation_time_to_first_chunk_seconds", what, labels, first)
    durations = {names: each.durations for names, each in statistics.items()}
    what = "From asking the endpoint to the end of a complete answer"
    yield histograms("gen_ai_client_operation_duration_seconds", what, labels, durations)
    states = {each.breaker.name: each.breaker.state.value for each in found}
    what = "0 closed: the provider is asked; 1 half open: one call probes it; 2 open: it is not asked"
    yield gauges("quintet_provider_breaker_state", what, "gen_ai_provider_name", states)
    openings = {each.breaker.name: each.breaker.opened for each in found}
    what = "How often it opened because the provider failed repeatedly"
    yield counters("quintet_provider_breaker_openings", what, "gen_ai_provider_name", openings)
