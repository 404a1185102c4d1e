"""How long to wait before another try."""

import random

_BASE_SECONDS, _LONGEST_SECONDS = 0.25, 4.0


def full_jitter(attempt: int) -> float:
    """Seconds after the attempt of this number, from 0: anything up to a bound that doubles, so that callers who failed
    together do not come back together.
    """
    return random.uniform(0.0, min(_LONGEST_SECONDS, _BASE_SECONDS * 2.0 ** min(attempt, 16)))
