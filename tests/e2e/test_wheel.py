"""The server as an image has it: installed from its wheels, far from the repository."""

import os
import site
import subprocess
import venv
import zipfile
from pathlib import Path

import grpc
import pytest
from quintet.v1 import model_pb2, model_pb2_grpc

from tests.clients.test_wheel import ENVIRONMENT, ROOT, call, pip


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wheels")
    pip(
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        ROOT / "clients" / "python",
        ROOT,
        cwd=folder,
    )
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with our wheels. The packages of others are those of this one; its links to the repository not."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--quiet", "--no-deps", *wheels, cwd=folder)
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "others.pth").write_text("\n".join(site.getsitepackages()))
    return python


def test_the_wheel_has_every_file(wheels: list[Path]) -> None:
    (wheel,) = [path for path in wheels if path.name.startswith("quintet-")]
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "server", "training"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert set(tracked) <= names
    assert {name.partition("/")[0] for name in names} == {"server", "training"}


def test_an_installed_server_starts(python: Path, tmp_path: Path) -> None:
    files = call(
        python, "-c", "import server, quintet.v1, buf.validate as v; print(server, quintet.v1, v)", cwd=tmp_path
    )
    assert str(ROOT) not in files
    assert call(python.parent / "quintet", "--version", cwd=tmp_path).startswith("quintet ")
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("QUINTET_")}
    data = tmp_path / "data"  # without models every service but one says what it lacks
    settings = {
        "QUINTET_PORT": "0",
        "QUINTET_LLM": "off",
        "QUINTET_DATA": str(data),
        "QUINTET_SHUTDOWN_PAUSE_SECONDS": "0",
    }
    with subprocess.Popen(
        [python, "-m", "server"],
        cwd=tmp_path,
        env={**environment, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[3].rstrip(";")
        with grpc.insecure_channel(address) as channel:
            stub = model_pb2_grpc.ModelServiceStub(channel)
            info = stub.GetServerInfo(model_pb2.GetServerInfoRequest(), timeout=20, wait_for_ready=True)
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert info.version
    assert {service.name for service in info.services} >= {"quintet.v1.ModelService", "quintet.v1.RagService"}
    assert os.listdir(tmp_path) in ([], ["data"])  # it writes nowhere else
