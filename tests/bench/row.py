"""A row of the table: how to measure, and what is to be reached."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.bench.stand import Stand

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Target:
    """A bound for one figure: `at_least` or `at_most`. Without either it is only shown."""

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def text(self) -> str:
        """As the table shows it."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}" if self.at_most is not None else ""

    def reached(self, value: float) -> bool | None:
        """None if nothing was asked."""
        if self.at_least is not None:
            return value >= self.at_least
        return value <= self.at_most if self.at_most is not None else None


@dataclass(frozen=True)
class Row:
    """`measure` is called once a round and returns figures by what they are, units included."""

    name: str
    measure: Callable[[Stand], Figures]
    targets: tuple[Target, ...]
    once: bool = False  # measured in the first round alone
