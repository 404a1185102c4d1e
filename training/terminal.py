"""What a run shows on the terminal: progress bars, the plan, and the results."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from server.models.artefact import read_manifest
from training.plan import Locations, State, Step, download_bytes
from training.progress import Advance, PlainProgress, Progress, Unit, count, megabytes
from training.recipe import Profile
from training.report import number
from training.run import Result


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Bars if the console is a terminal, else lines."""
    console = Console()
    if not console.is_terminal:
        yield PlainProgress()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), _CountColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console, transient=True) as bars:
        yield _Bars(bars)


class _Bars:
    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    @contextmanager
    def task(self, label: str, total: int, unit: Unit) -> Iterator[Advance]:
        task = self._bars.add_task(label, total=total, unit=unit)
        try:
            yield lambda amount: self._bars.advance(task, amount)
        finally:
            self._bars.remove_task(task)


class _CountColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(count(int(task.completed), int(task.total or 0), task.fields["unit"]))


def show_plan(plan: Sequence[Step], profile: Profile) -> None:
    """The state of each artefact, what will be fetched, and how long building takes."""
    table = _table("artefact", "version", "state", "fetch>", "make>")
    counted: set[str] = set()
    total_bytes, total_seconds = 0, 0.0
    for step in plan:
        size = sum(download_bytes(item) for item in step.fetch if item.name not in counted)
        counted.update(item.name for item in step.fetch)
        seconds = step.recipe.expected_seconds(profile) if step.state is State.MISSING else 0.0
        total_bytes, total_seconds = total_bytes + size, total_seconds + seconds
        table.add_row(
            step.recipe.name,
            step.version,
            step.state.value,
            megabytes(size) if size else "",
            f"{seconds:.0f} s" if seconds else "",
        )
    table.add_section()
    table.add_row("total", "", "", megabytes(total_bytes), f"{total_seconds:.0f} s")
    _print(table)


def show_results(results: Iterable[Result], locations: Locations) -> None:
    """Size, most important metric and duration of each step, or that it failed."""
    table = _table("artefact", "version", "size>", "key metric", "seconds>")
    for step, seconds, failure in results:
        name, key = step.recipe.name, step.recipe.key_metric
        if failure:
            table.add_row(name, step.version, "", "failed", "")
            continue
        cached = locations.cache.artefact(name, step.digest)
        manifest = read_manifest(cached if cached.is_dir() else locations.models / name / step.version)
        metric = f"{key.replace('_', ' ')} {number(manifest.metrics[key])}" if key else ""
        table.add_row(name, step.version, megabytes(manifest.size_bytes), metric, f"{seconds:.1f}")
    _print(table)


def _table(*columns: str) -> Table:
    """A plain table; columns marked with > are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left", no_wrap=True)
    return table


def _print(table: Table) -> None:
    console = Console()
    console.width = max(console.width, 120)  # a log has no width to break lines at
    console.print(table)
