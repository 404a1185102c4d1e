"""How the sending of traces goes, for logs and metrics."""

import logging
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class TraceExport:
    """`away` is true while the collector takes no spans; `lost` counts those that it did not take. The log has a line
    when that changes.
    """

    endpoint: str
    away: bool = False
    lost: int = 0

    def sent(self) -> None:
        if self.away:
            self.away = False
            log.warning("traces can be sent to %s again; %d spans were lost", self.endpoint, self.lost)

    def failed(self, spans: int, cause: str) -> None:
        self.lost += spans
        if not self.away:
            self.away = True
            log.error("traces cannot be sent to %s (%s); spans are dropped", self.endpoint, cause or "no answer")
