"""Metrics of language models, by provider: tokens, times, and circuit breakers; and of the ledger."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import Metric

from server.observability.families import counters, gauges, histograms
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.tasks.chat.statistics import UpstreamStatistics


class UpstreamMetrics(Protocol):
    """A model of a provider."""

    @property
    def name(self) -> str:
        """What the model is called."""
        ...

    @property
    def breaker(self) -> CircuitBreaker:
        """The provider's."""
        ...

    @property
    def generations(self) -> UpstreamStatistics:
        """The model's."""
        ...


class LedgerState(Protocol):
    """How the ledger fares."""

    @property
    def away(self) -> bool:
        """Whether it cannot be written to."""
        ...

    @property
    def waiting(self) -> int:
        """What is not yet being written."""
        ...


def ledger(state: LedgerState) -> Iterator[Metric]:
    """Whether calls can be accounted."""
    yield gauges("quintet_ledger_away", "1 if it cannot be written to: what costs is refused", (), [((), state.away)])
    yield gauges("quintet_ledger_waiting", "Rows, and ends of rows, not yet being written", (), [((), state.waiting)])


def generations(legs: Mapping[str, UpstreamMetrics]) -> Iterator[Metric]:
    """Tokens and times of generations."""
    found = [(("chat", leg.breaker.name, leg.name), leg.generations) for leg in list(legs.values())]
    labels = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
    yield histograms(
        "gen_ai_client_token_usage",
        "Tokens of a generation",
        (*labels, "gen_ai_token_type"),
        (
            row
            for names, each in found
            for row in (((*names, "input"), each.input_tokens), ((*names, "output"), each.output_tokens))
        ),
    )
    yield histograms(
        "gen_ai_client_operation_time_to_first_chunk_seconds",
        "From asking the endpoint to its first token",
        labels,
        ((names, each.time_to_first_token) for names, each in found),
    )
    yield histograms(
        "gen_ai_client_operation_duration_seconds",
        "UpstreamStatistics that came to their end",
        labels,
        ((names, each.durations) for names, each in found),
    )


def breakers(legs: Mapping[str, UpstreamMetrics]) -> Iterator[Metric]:
    """Whom nobody asks for a while."""
    found = {leg.breaker.name: leg.breaker for leg in list(legs.values())}.items()
    yield gauges(
        "quintet_provider_breaker_state",
        "0 closed: it is asked; 1 half open: it is asked once; 2 open: it is left alone",
        ("gen_ai_provider_name",),
        (((name,), breaker.state.value) for name, breaker in found),
    )
    yield counters(
        "quintet_provider_breaker_openings",
        "How often it was left alone because it had failed again and again",
        ("gen_ai_provider_name",),
        (((name,), breaker.opened) for name, breaker in found),
    )
