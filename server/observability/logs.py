"""The log on stderr, as text or as one JSON object a line. Every line has the request id of its call."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from server.domain.context import current_or_none


def to_stderr(level: str, form: str) -> None:
    """Log the server from `level` on, and warnings of libraries; `form` is "text" or "json"."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)  # libraries
    logging.getLogger("server").setLevel(level)


class TextLines(logging.Formatter):
    """Time, level, logger, request id or "-", message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        call = current_or_none()
        record.request_id = call.request_id if call else "-"
        return super().format(record)


class JsonLines(logging.Formatter):
    """Fields: time (RFC 3339), level, logger, message, request_id and trace_id if there are any, exception, and those
    in `extra={"fields": ...}`. One line, also if the message has several.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if call := current_or_none():
            line["request_id"] = call.request_id
            if call.trace is not None:
                line["trace_id"] = call.trace.id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
