"""The two tables of a run: what will be done, and what became of it."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from server.models.artefact import MANIFEST
from training.plan import Places, State, Step, download_bytes
from training.progress import megabytes
from training.recipe import Profile
from training.reports.report import number
from training.run import Result


def show_plan(plan: Sequence[Step], profile: Profile) -> None:
    """What is there, what will be fetched, and how long making it takes."""
    table = _table("artefact", "version", "state", "fetch>", "make>")
    fetched: set[str] = set()
    total_bytes, total_seconds = 0, 0.0
    for step in plan:
        fetch = sum(download_bytes(item) for item in step.fetch if item.name not in fetched)
        fetched.update(item.name for item in step.fetch)
        seconds = step.recipe.expected_seconds(profile) if step.state is State.MISSING else 0.0
        total_bytes, total_seconds = total_bytes + fetch, total_seconds + seconds
        table.add_row(
            step.recipe.name,
            step.version,
            step.state.value,
            megabytes(fetch) if fetch else "",
            f"{seconds:.0f} s" if seconds else "",
        )
    table.add_section()
    table.add_row("total", "", "", megabytes(total_bytes), f"{total_seconds:.0f} s")
    _print(table)


def show_results(results: Iterable[Result], places: Places) -> None:
    """What became of every step."""
    table = _table("artefact", "version", "size>", "key metric", "seconds>")
    for result in results:
        step = result.step
        if result.failure:
            table.add_row(step.recipe.name, step.version, "", "failed", "")
            continue
        manifest = _manifest(step, places)
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        key = step.recipe.key_metric
        metric = f"{key.replace('_', ' ')} {number(manifest['metrics'][key])}" if key else ""
        table.add_row(step.recipe.name, step.version, megabytes(size), metric, f"{result.seconds:.1f}")
    _print(table)


def _manifest(step: Step, places: Places) -> dict[str, Any]:
    cached = places.cache.artefact(step.recipe.name, step.digest)
    folder = cached if cached.is_dir() else places.models / step.recipe.name / step.version
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    return manifest


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
