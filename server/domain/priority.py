"""Which threads go first where cores are short. On Linux priorities are those of threads.

    0             the event loop, gRPC's threads, everything that only passes calls on
    LANES         computing for callers; the process of a language model has the same (`tasks/chat/embedded_process.py`)
    PARSING       spaCy's process: a parse may last, Classify shall not notice
    BACKGROUND    loading models once the server has started: few wait for it, and everybody would notice

A call needs the loop for a fraction of a millisecond before and after it is computed, and a refusal needs nothing else:
they shall not wait until a lane has used up its time slice. Children stay in the server's session: Linux may give every
session the same share of the cores (autogroup), whatever the priorities in it.
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
    """Give this thread a lower priority (setpriority(2)), unless it has one that is lower still."""
    thread = threading.get_native_id()
    _own.steps = max(steps, _steps())
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, max(steps, os.getpriority(os.PRIO_PROCESS, thread)))


def rest(seconds: float) -> None:
    """After so many seconds of work, sleep for eight times as long if this thread works in the background.

    Work of low priority still shares caches and memory with the others.
    """
    if _steps() == BACKGROUND:
        time.sleep(seconds * _REST)


def _steps() -> int:
    return getattr(_own, "steps", 0)
