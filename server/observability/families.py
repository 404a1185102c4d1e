"""Prometheus metric families from rows of label values and numbers."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily


def _family(kind: Callable[..., Any], name: str, what: str, labels: str, rows: Mapping[Any, Any]) -> Metric:
    """`labels` are names with spaces between them; `rows` maps their values, a tuple if there are several, to numbers,
    or to domain Histograms. A family without labels has the row ().
    """
    family: Any = kind(name, what, labels=labels.split())
    for key, value in rows.items():
        values = key if isinstance(key, tuple) else (key,)
        if kind is HistogramMetricFamily:
            bounds = (*map(str, value.bounds), "+Inf")
            family.add_metric(values, list(zip(bounds, accumulate(list(value.counts)), strict=True)), value.total)
        else:
            family.add_metric(values, value)
    metric: Metric = family
    return metric


gauges = partial(_family, GaugeMetricFamily)  # values that rise and fall
counters = partial(_family, CounterMetricFamily)  # values that only grow
histograms = partial(_family, HistogramMetricFamily)  # distributions
