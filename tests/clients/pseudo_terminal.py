"""Runs the command on a pseudo-terminal."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence


class PseudoTerminal:
    """A process whose standard input, output and error are a terminal of `columns` columns."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], columns: int) -> None:
        self._fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._process = subprocess.Popen(
            command,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**environment, "TERM": "xterm"},
            start_new_session=True,
        )
        os.close(inner)
        self.output = ""

    def type(self, keys: str) -> None:
        """Press keys; a carriage return is Enter, and code 4 Ctrl-D."""
        os.write(self._fd, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def read_until(self, text: str, seconds: float = 60) -> str:
        """The output up to and including `text`; the rest of it if `text` is empty."""
        end = time.monotonic() + seconds
        while not text or text not in self.output:
            if not select.select([self._fd], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no {text!r} in {self.output!r}")
            try:
                chunk = os.read(self._fd, 65536)
            except OSError:  # the process has closed the terminal
                chunk = b""
            if not chunk:
                break
            self.output += chunk.decode(errors="replace").replace("\r\n", "\n")
        found, self.output = (self.output, "") if not text else self._split(text)
        return found

    def _split(self, text: str) -> tuple[str, str]:
        if text not in self.output:
            raise EOFError(f"no {text!r} in {self.output!r}")
        head, tail = self.output.split(text, 1)
        return head + text, tail

    def wait(self, seconds: float = 60) -> int:
        """The exit status."""
        return self._process.wait(seconds)

    def close(self) -> None:
        """End the process if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        os.close(self._fd)
