"""Statistics of an upstream, as plain numbers for metrics."""

from server.domain.histogram import Histogram

_TOKENS = tuple(float(4**power) for power in range(10))  # the boundaries that OpenTelemetry advises for token usage
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class UpstreamStatistics:
    """Of complete answers. Tokens are the provider's counts, or our own where it reported none."""

    def __init__(self) -> None:
        self.input_tokens = Histogram(_TOKENS)
        self.output_tokens = Histogram(_TOKENS)
        self.time_to_first_token = Histogram(_FIRST_TOKEN)  # seconds, from asking the endpoint
        self.durations = Histogram()
