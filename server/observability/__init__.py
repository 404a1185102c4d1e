"""Metrics for Prometheus, traces for OpenTelemetry, and the log.

Reads the numbers that the other rooms keep; no other room but `app.py` imports this one. May import every room but
`app.py`. Read first: `metrics.py`, `tracing.py`, `logs.py`.

Words: a family is a metric with its rows of labels. A Collector reads all families at a scrape. A part is a piece of a
call that waited for a lane and computed; it has its own span in the call's trace.
"""
