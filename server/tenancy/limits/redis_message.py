"""What is sent to Redis, and which of its errors a message causes itself."""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.commands.core import AsyncScript
from redis.exceptions import ResponseError

# Words of errors that are not the message's: Redis is a replica, full, loading, or gives no rights. Scripts add text
# around them.
_PASSING = re.compile(
    "READONLY|MISCONF|OOM|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|LOADING|BUSY|UNKILLABLE|TRYAGAIN|NOAUTH|NOPERM|WRONGPASS"
)
Fill = Callable[[int], Mapping[str, Any]]  # the argument of a script, from the offset of Redis's clock


@dataclass(slots=True, eq=False)
class Message:
    """One run of a script. Settlements have no answer, and a number that ascends."""

    script: AsyncScript
    keys: Sequence[str]
    fill: Fill
    number: int | None = None
    answer: asyncio.Future[list[Any]] | None = None
    tries: int = 0


def is_its_own(error: Exception) -> bool:
    """Whether Redis answers so because of the message itself, and would again. Subclasses are of the other kind."""
    return type(error) is ResponseError and not _PASSING.search(str(error))
