"""Threads that step back, and rest."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from server.domain.priority import LANES, rest, step_back


def test_only_background_work_rests() -> None:
    def timed() -> float:
        begun = time.monotonic()
        rest(0.02)
        return time.monotonic() - begun

    with ThreadPoolExecutor(1) as thread:
        at_first = thread.submit(timed).result()
        thread.submit(step_back, LANES).result()
        in_a_lane = thread.submit(timed).result()
        thread.submit(step_back).result()
        in_the_background = thread.submit(timed).result()
    assert max(at_first, in_a_lane) < 0.1 <= in_the_background


def test_a_thread_never_steps_forward() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with ThreadPoolExecutor(1) as thread:
        thread.submit(step_back).result()
        lowest = thread.submit(priority).result()
        thread.submit(step_back, LANES).result()
        assert thread.submit(priority).result() == lowest
