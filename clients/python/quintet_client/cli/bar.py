"""A bar on the terminal while something takes long."""

import shutil
import sys
import time
from types import TracebackType

from quintet_client.cli.terminal import cut

_WIDTH = 24
_INTERVAL_SECONDS = 0.1


class Bar:
    """One line of standard error that is written over and over, and gone at the end; nothing where that is no terminal.

    `total` is in any unit; `advance` tells how much of it is done.
    """

    def __init__(self, total: float, *, hidden: bool = False) -> None:
        self._total = total
        self._shown = sys.stderr.isatty() and not hidden
        self._begun = time.monotonic()
        self._told = 0.0

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write("")

    def show(self, done: float, text: str) -> None:
        """So much of the total is done; `text` says it in words."""
        now = time.monotonic()
        if now - self._told < _INTERVAL_SECONDS:
            return
        self._told = now
        share = min(1.0, done / self._total) if self._total else 0.0
        filled = round(share * _WIDTH)
        left = f", {_duration((now - self._begun) * (1 - share) / share)} left" if share > 0 else ""
        self._write(f"{'█' * filled}{'░' * (_WIDTH - filled)} {share:4.0%}  {text}{left}")

    def _write(self, text: str) -> None:
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{cut(text, shutil.get_terminal_size().columns - 1)}")
            sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
