"""What a run reports while it works; here as plain lines for logs. `terminal.py` shows bars."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

Unit = Literal["bytes", "steps"]
Advance = Callable[[int], None]  # that many bytes or steps more; fewer, if something starts again
_INTERVAL_SECONDS = 15.0


class Progress(Protocol):
    """Shows tasks and lines; may be used from several threads."""

    def task(self, label: str, total: int, unit: Unit) -> AbstractContextManager[Advance]:
        """Show a task for the duration of the `with` block."""
        ...

    def say(self, text: str) -> None:
        """Print a line that stays."""
        ...


class PlainProgress:
    """Every 15 seconds a line with the share done and the time left."""

    def say(self, text: str) -> None:
        """Print at once."""
        print(text, flush=True)

    @contextmanager
    def task(self, label: str, total: int, unit: Unit) -> Iterator[Advance]:
        """Print lines while the task runs."""
        lock = threading.Lock()
        done, begun = 0, time.monotonic()
        printed = begun

        def advance(amount: int) -> None:
            nonlocal done, printed
            with lock:
                done += amount
                now = time.monotonic()
                if now - printed >= _INTERVAL_SECONDS and 0 < done < total:
                    printed = now
                    left = (now - begun) * (total - done) / done
                    self.say(f"{label}: {count(done, total, unit)}, {left:.0f} s left")

        yield advance


def count(done: int, total: int, unit: Unit) -> str:
    """How far a task is, for people."""
    return f"{megabytes(done)} of {megabytes(total)}" if unit == "bytes" else f"{done} of {total}"


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"
