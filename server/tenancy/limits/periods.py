"""Days and months of UTC, for which budgets hold. Instants are microseconds since 1970."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

SECOND = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Span(NamedTuple):
    """A period as instants: from `start` up to, but without, `end`. `date` is that of its first day."""

    start: int
    end: int
    date: str


class Period(StrEnum):
    """How long a budget holds."""

    DAY = "day"
    MONTH = "month"

    def around(self, now: int) -> Span:
        """The period that `now` is in."""
        return _span(self, now // (86_400 * SECOND))


@lru_cache(maxsize=16)
def _span(period: Period, day: int) -> Span:
    start = _EPOCH + timedelta(days=day)
    if period is Period.DAY:
        end = start + timedelta(days=1)
    else:
        start = start.replace(day=1)
        end = (start + timedelta(days=31)).replace(day=1)
    return Span(_instant(start), _instant(end), start.date().isoformat())


def moment(instant: int) -> datetime:
    """The instant as a time in UTC."""
    return _EPOCH + timedelta(microseconds=instant)


def _instant(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)
