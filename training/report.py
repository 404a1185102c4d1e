"""The files that explain an artefact to people: report.md and LICENCE.txt."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from training.fetch.lock import Input

REPORT = "report.md"


def write_report(folder: Path, title: str, text: str, metrics: Mapping[str, float], *plots: str) -> None:
    """Write report.md: a text, the metrics as a table, and plots beside it."""
    lines = [f"# {title}", "", text.strip(), ""]
    if metrics:
        lines += ["| Metric | Value |", "| --- | ---: |"]
        lines += [f"| {name.replace('_', ' ')} | {number(value)} |" for name, value in metrics.items()]
        lines.append("")
    for plot in plots:
        lines += [f"![{Path(plot).stem.replace('_', ' ')}]({plot})", ""]
    (folder / REPORT).write_text("\n".join(lines), encoding="utf-8")


def number(value: float) -> str:
    """A metric for people: four significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def write_licence(folder: Path, inputs: Iterable[Input]) -> None:
    """Write LICENCE.txt: terms and authors of everything that the artefact is built from."""
    parts = ["This artefact is built from:\n"]
    for item in inputs:
        terms = item.licence
        parts.append(f"{item.title}\n  Licence:     {terms.name}, {terms.url}\n  Attribution: {terms.attribution}\n")
    (folder / "LICENCE.txt").write_text("\n".join(parts), encoding="utf-8")


def licence_line(inputs: Iterable[Input]) -> str:
    """The terms in one line, for the manifest."""
    return "; ".join(f"{item.name}: {item.licence.name} ({item.licence.attribution})" for item in inputs)
