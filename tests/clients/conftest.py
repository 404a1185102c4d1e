"""A server in this process, and the command as a process of its own."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import quintet
import quintet_client
from quintet_client.cli import main

from tests.clients.pseudo_terminal import PseudoTerminal
from tests.clients.small_server import SmallServer, running

IMPORT_ROOTS = {str(Path(str(package.__file__)).parents[1]) for package in (quintet, quintet_client)}
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("QUINTET_", "NO_COLOR", "COLUMNS"))},
    "PYTHONPATH": os.pathsep.join(IMPORT_ROOTS),
}
COMMAND = (sys.executable, "-m", "quintet_client")


class Quintet(Protocol):
    """Runs `quintet ARGUMENT...` to its end."""

    def __call__(
        self, *arguments: str, stdin: str | bytes = "", cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def server() -> Iterator[SmallServer]:
    with running() as small:
        yield small


@pytest.fixture
def quintet_command(server: SmallServer) -> Quintet:
    def run(
        *arguments: str, stdin: str | bytes = "", cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*COMMAND, *arguments],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=30,
            check=False,
            cwd=cwd,
            env={**ENVIRONMENT, "QUINTET_ADDRESS": server.address, **environment},
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def in_process(server: SmallServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Quintet:
    """The same without a process of its own, which is faster."""

    def run(
        *arguments: str, stdin: str | bytes = "", cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        content = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        for name, value in {"QUINTET_ADDRESS": server.address, **environment}.items():
            monkeypatch.setenv(name, value)
        if cwd:
            monkeypatch.chdir(cwd)
        try:
            status = main(arguments)
        except SystemExit as error:  # argparse ends so
            status = int(error.code or 0)
        output = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, status, output.out, output.err)

    return run


class OpenTerminal(Protocol):
    """Starts `quintet ARGUMENT...` on a pseudo-terminal."""

    def __call__(self, *arguments: str, columns: int = 80, **environment: str) -> PseudoTerminal: ...


@pytest.fixture
def terminal(server: SmallServer) -> Iterator[OpenTerminal]:
    started: list[PseudoTerminal] = []

    def start(*arguments: str, columns: int = 80, **environment: str) -> PseudoTerminal:
        variables = {**ENVIRONMENT, "QUINTET_ADDRESS": server.address, **environment}
        started.append(PseudoTerminal([*COMMAND, *arguments], variables, columns))
        return started[-1]

    yield start
    for each in started:
        each.close()
