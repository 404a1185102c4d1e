"""Money in files that people write: a decimal in quotes, read as integers of millionths."""

import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator

_MONEY = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")


def micros(money: object) -> int:
    """Millionths of "12.50". Raises ValueError for what is no such text: a TOML number may have lost a cent already."""
    if not isinstance(money, str) or not _MONEY.fullmatch(money):
        raise ValueError('must be a decimal in quotes with at most nine digits and six decimals, for instance "12.50"')
    return int(Decimal(money) * 1_000_000)


Micros = Annotated[int, BeforeValidator(micros)]
