"""The log on stderr: lines for people, or a JSON object a line for machines. Every line names the call it is of."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from server.domain.context import current_or_none


def to_stderr(level: str, form: str) -> None:
    """Log what the server says from `level` on, and warnings of libraries; `form` is "text" or "json"."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)  # libraries
    logging.getLogger("server").setLevel(level)


class TextLines(logging.Formatter):
    """Time, level, logger, request id or "-", and the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """One line; more for an exception."""
        call = current_or_none()
        record.request_id = call.request_id if call else "-"
        return super().format(record)


class JsonLines(logging.Formatter):
    """Fields time (RFC 3339), level, logger, message; request_id of a call, and trace_id if it is traced; exception;
    and what the line has in `extra={"fields": ...}`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message contains."""
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
