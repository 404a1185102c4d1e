"""Cost of calls, and money in configuration files: decimals in quotes, read as integers of millionths."""

import re
from dataclasses import dataclass
from decimal import Decimal

_MONEY = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call costs: tokens of prompt and answer together, and money in millionths of the currency."""

    tokens: int = 0
    micros: int = 0


def micros(money: object) -> int:
    """Millionths of "12.50". Raises ValueError for any other form: a TOML float may have been rounded."""
    if not isinstance(money, str) or not _MONEY.fullmatch(money):
        raise ValueError('must be a decimal in quotes with at most nine digits and six decimals, for instance "12.50"')
    return int(Decimal(money) * 1_000_000)
