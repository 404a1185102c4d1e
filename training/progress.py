"""What a run shows: bars on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBars

Unit = Literal["bytes", "steps"]
_PLAIN_INTERVAL_SECONDS = 15.0


class Task(Protocol):
    """Something under way."""

    def advance(self, amount: int) -> None:
        """That many bytes or steps more; fewer, if something starts over."""
        ...


class Progress(Protocol):
    """Shows tasks and sentences; may be used from several threads."""

    def task(self, label: str, total: int, unit: Unit) -> AbstractContextManager[Task]:
        """A task for the time of the `with` block."""
        ...

    def say(self, text: str) -> None:
        """A line that stays."""
        ...


@contextmanager
def show_progress(console: "Console") -> Iterator[Progress]:
    """Bars with size and time left if the console is a terminal, else a line now and then."""
    if not console.is_terminal:
        yield PlainProgress()
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichBars

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeRemainingColumn()
    with RichBars(*columns, console=console, transient=True) as bars:
        yield _Bars(bars)


class PlainProgress:
    """Lines for logs."""

    def say(self, text: str) -> None:
        """Print it at once."""
        print(text, flush=True)

    @contextmanager
    def task(self, label: str, total: int, unit: Unit) -> Iterator[Task]:
        """Tells the share done and the time left every 15 seconds."""
        yield _PlainTask(label, total, unit, self)


class _PlainTask:
    def __init__(self, label: str, total: int, unit: Unit, progress: PlainProgress) -> None:
        self._label, self._total, self._unit, self._progress = label, total, unit, progress
        self._done = 0
        self._begun = self._told = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if now - self._told < _PLAIN_INTERVAL_SECONDS or not 0 < self._done < self._total:
                return
            self._told = now
            left = (now - self._begun) * (self._total - self._done) / self._done
            self._progress.say(f"{self._label}: {_count(self._done, self._total, self._unit)}, {left:.0f} s left")


class _Bars:
    def __init__(self, bars: "RichBars") -> None:
        self._bars = bars

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    @contextmanager
    def task(self, label: str, total: int, unit: Unit) -> Iterator[Task]:
        identity = self._bars.add_task(label, total=total, count=_count(0, total, unit))
        bars = self._bars

        class Bar:
            def advance(self, amount: int) -> None:
                bars.advance(identity, amount)
                done = next(task.completed for task in bars.tasks if task.id == identity)
                bars.update(identity, count=_count(int(done), total, unit))

        try:
            yield Bar()
        finally:
            bars.remove_task(identity)


def _count(done: int, total: int, unit: Unit) -> str:
    return f"{megabytes(done)} of {megabytes(total)}" if unit == "bytes" else f"{done} of {total}"


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"
