"""The process of spacy_process.py, seen from the server: asked on one thread, watched on another.

The watch replaces a child that ends, that hangs (it uses no CPU although it is asked), or that takes a minute for one
text, so that no call waits for it longer.
"""

import contextlib
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from server.domain.errors import ModelLoading, ServerStopping

log = logging.getLogger(__name__)

_MODULE = "server.tasks.analysis.spacy_process"
_WATCH_SECONDS = 0.5
_KILL_SECONDS = 5.0  # for the kernel to end it
_IDLE_SECONDS = 5.0  # without CPU although it is asked: it hangs
_ANSWER_SECONDS = 60.0  # for a text, and for the start of the child
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0  # seconds between two starts, while no text is answered between them
_STARTS = 3  # without an answer: it will not come back


class SpacyChild:
    """A running child, between construction and close(). Construct it on a thread that lives until close(): the kernel
    ends the child with the thread that started it.
    """

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._lock = threading.RLock()  # held while the child is asked or started
        self._asked: float | None = None  # time.monotonic() when the text was sent that is not answered yet
        self._closed = threading.Event()
        self._delay, self._next_start = _FIRST_DELAY, 0.0
        self._starts = 0  # since the latest answer
        self._seen: tuple[object, ...] = ()  # child, question and CPU time at the latest look
        self._active = 0.0  # time.monotonic() when they changed
        self._start()
        threading.Thread(target=self._watch, daemon=True, name="spacy-watch").start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_lost(self) -> bool:
        """Whether it ended again and again without an answer."""
        return self._starts >= _STARTS and not self._is_alive()

    def ask(self, text: str) -> bytes:
        """What the child says of a text. Raises ModelLoading if it ends or hangs, and ServerStopping after close()."""
        with self._lock:
            if not self._is_alive():
                self._start_again()
            self._asked = time.monotonic()
            try:
                self._connection.send_bytes(text.encode())
                answer = self._connection.recv_bytes()
            except (EOFError, OSError) as error:
                raise self.replaced() from error
            finally:
                self._asked = None
            self._delay, self._starts = _FIRST_DELAY, 0
            return answer

    def replaced(self) -> ModelLoading | ServerStopping:
        """Start another child; return the error for the call that the present one does not answer."""
        with self._lock:
            self._end()
            if self._closed.is_set():
                return ServerStopping("the server is stopping")
            self._start_again()
        return ModelLoading("spaCy's process is being started again", retry_after=2.0)

    def close(self) -> None:
        """End the child; the call that it serves raises ServerStopping."""
        self._closed.set()
        self._end()
        with self._lock:
            self._end()  # one that was started meanwhile

    def _is_alive(self) -> bool:
        return self._process.poll() is None

    def _end(self) -> None:
        self._process.kill()  # it has nothing to save
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_SECONDS)

    def _start_again(self) -> None:
        """Start another child, unless the latest start was a moment ago and of no use."""
        now = time.monotonic()
        if now >= self._next_start and not self._closed.is_set():
            self._next_start, self._delay = now + self._delay, min(2 * self._delay, _LONGEST_DELAY)
            log.error("spaCy's process ended with status %s; it is started again", self._process.returncode)
            self._connection.close()
            self._starts += 1
            self._start()

    def _start(self) -> None:
        self._connection, childs = multiprocessing.Pipe()
        with childs:
            descriptor = childs.fileno()
            self._process = subprocess.Popen(  # noqa: S603  # the command is our own
                [sys.executable, "-P", "-m", _MODULE, str(descriptor), self._pipeline, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[descriptor],
                process_group=0,  # Ctrl-C is for the server, which drains. No session of its own: see priority.py.
            )

    def _watch(self) -> None:
        while not self._closed.wait(_WATCH_SECONDS):
            try:
                self._look()
            except Exception:  # of any kind, because watching must go on
                log.exception("spaCy's process could not be watched")

    def _look(self) -> None:
        process, asked, now = self._process, self._asked, time.monotonic()
        if asked is None:
            self._replace_if_ended()
            return
        if (seen := (process.pid, asked, _cpu(process.pid))) != self._seen or _is_busy(process.pid):
            self._seen, self._active = seen, now
        if now - asked > _ANSWER_SECONDS or now - self._active > _IDLE_SECONDS:
            log.error("spaCy's process hangs: no answer after %.0f s", now - asked)
            process.kill()  # which ends the wait of ask()

    def _replace_if_ended(self) -> None:
        if not self._is_alive() and self._lock.acquire(blocking=False):
            try:
                if not self._is_alive():
                    self._start_again()
            finally:
                self._lock.release()


def _fields(pid: int) -> list[str]:
    """Those of /proc/PID/stat (proc_pid_stat(5)) from the state on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu(pid: int) -> tuple[str, ...]:
    """CPU time so far."""
    return tuple(_fields(pid)[11:13])


def _is_busy(pid: int) -> bool:
    """Whether it waits for a core or for the disk."""
    return _fields(pid)[:1] in (["R"], ["D"])
