"""A progress bar for long work."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quintet_client.cli.terminal import console_of


@contextmanager
def progress_bar(*, hidden: bool = False) -> Iterator[Callable[[float, float, str], None]]:
    """A bar on standard error while the body runs; nothing if that is not a terminal.

    The body calls the function that it gets with what is done, the total in the same unit, and a text.
    """
    # Imported here: it takes 30 ms, and most commands have no bar.
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = console_of(sys.stderr)
    with Progress(
        BarColumn(24),
        TaskProgressColumn(),
        TextColumn("{task.description}", markup=False),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=hidden or not console.is_terminal,
    ) as progress:
        task = progress.add_task("")
        yield lambda done, total, text: progress.update(task, completed=done, total=total, description=text)
