"""Families of Prometheus metrics from rows of labels and numbers."""

from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from server.domain.histogram import Histogram

Rows = Iterable[tuple[Sequence[str], Any]]  # values of the labels, and the number or the histogram


def histograms(name: str, what: str, labels: Sequence[str], rows: Rows) -> Metric:
    """Distributions."""
    family = HistogramMetricFamily(name, what, labels=labels)
    for values, histogram in rows:
        family.add_metric(values, _buckets(histogram), histogram.total)
    return family


def gauges(name: str, what: str, labels: Sequence[str], rows: Rows) -> Metric:
    """What goes up and down."""
    family = GaugeMetricFamily(name, what, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def counters(name: str, what: str, labels: Sequence[str], rows: Rows) -> Metric:
    """What only grows."""
    family = CounterMetricFamily(name, what, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _buckets(histogram: Histogram) -> list[Any]:
    """Cumulative counts up to each bound, as Prometheus wants them."""
    found, below = [], 0
    for bound, number in zip((*histogram.bounds, "+Inf"), list(histogram.counts), strict=True):
        below += number
        found.append((str(bound), below))
    return found
