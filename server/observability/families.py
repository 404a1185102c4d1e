"""Prometheus metric families from rows of label values and numbers."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

Rows = Iterable[tuple[Sequence[str], Any]]  # label values, and a number or a domain Histogram


def histograms(name: str, what: str, labels: Sequence[str], rows: Rows) -> Metric:
    """Distributions."""
    family = HistogramMetricFamily(name, what, labels=labels)
    for values, each in rows:
        bounds = (*map(str, each.bounds), "+Inf")
        family.add_metric(values, list(zip(bounds, accumulate(list(each.counts)), strict=True)), each.total)
    return family


def gauges(name: str, what: str, labels: Sequence[str], rows: Rows) -> Metric:
    """Values that rise and fall."""
    return _filled(GaugeMetricFamily(name, what, labels=labels), rows)


def counters(name: str, what: str, labels: Sequence[str], rows: Rows) -> Metric:
    """Values that only grow."""
    return _filled(CounterMetricFamily(name, what, labels=labels), rows)


def _filled(family: Any, rows: Rows) -> Metric:
    for values, number in rows:
        family.add_metric(values, number)
    filled: Metric = family
    return filled
