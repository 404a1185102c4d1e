"""Which threads run first where cores are short. On Linux priorities belong to threads.

    0             the event loop and gRPC's threads, which only pass calls on
    LANES         computing for callers; the embedded language model's process has the same
    PARSING       spaCy's process: a parse may take long, and Classify must not notice
    BACKGROUND    loading models once the server serves

A call needs the loop for a fraction of a millisecond before and after it is computed, and a refusal needs nothing else:
they must not wait until a lane has used up its time slice. Children stay in the server's session, because Linux may
give every session the same share of the cores (autogroup), whatever the priorities in it.
"""

import contextlib
import os
import threading
import time

LANES = 12
PARSING = 17
BACKGROUND = 19
_REST = 8.0  # times the work before it
_own = threading.local()  # `steps` of this thread


def step_back(steps: int = BACKGROUND) -> None:
    """Lower the priority of this thread to `steps` (setpriority(2)), unless it is lower already."""
    thread = threading.get_native_id()
    _own.steps = max(steps, _steps())
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, max(steps, os.getpriority(os.PRIO_PROCESS, thread)))


def rest(seconds: float) -> None:
    """After so many seconds of work, sleep for eight times as long if this thread works in the background.

    Even at low priority its work takes caches and memory bandwidth from the others.
    """
    if _steps() == BACKGROUND:
        time.sleep(seconds * _REST)


def _steps() -> int:
    return getattr(_own, "steps", 0)
