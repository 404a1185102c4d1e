"""The client as users install it: from a wheel, and in place."""

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# An environment in which nothing of the repository can be imported by accident.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
IMPORT_ALL = """
import sys, quintet_client, quintet_client.cli
import quintet.v1.rag_pb2_grpc, buf.validate.validate_pb2
from quintet_client import *
print(quintet_client.__file__, quintet.v1.rag_pb2_grpc.__file__, buf.validate.validate_pb2.__file__, sep="\\n")
print(*sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)))
"""
EXPECTED = {"buf", "google", "grpc", "grpc_health", "grpc_status", "quintet", "quintet_client"}
TOLERATED = {"cython_runtime", "typing_extensions", "sitecustomize", "usercustomize"}  # grpcio's, the interpreter's


def call(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str | Path, cwd: Path) -> str:
    return call(sys.executable, "-m", "pip", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "-w", folder, ROOT / "clients/python", cwd=folder)
    return next(folder.glob("quintet_client-*.whl"))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    return folder / "bin" / "python"


def test_the_wheel_has_the_contract_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licence = archive.read("quintet_client-0.1.0.dist-info/licenses/LICENSE")
        metadata = archive.read("quintet_client-0.1.0.dist-info/METADATA").decode()
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert "License-Expression: Apache-2.0\n" in metadata
    protos = {str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos/quintet").rglob("*.proto")}
    stubs = {name.replace(".proto", suffix) for name in protos for suffix in ("_pb2.py", "_pb2.pyi")}
    markers = {"quintet/v1/py.typed", "buf/validate/py.typed", "quintet_client/py.typed"}
    assert protos | stubs | markers | {"buf/validate/validate_pb2.py", "quintet_client/cli/chat.py"} <= names
    assert {name.partition("/")[0] for name in names} == {"buf", "quintet", "quintet_client"}
    assert {Path(name).suffix or Path(name).name for name in names} == {".py", ".pyi", ".proto", ".typed"}


def refused(*command: str | Path) -> str:
    """What a command that cannot run writes to standard error."""
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def imported(python: Path, cwd: Path) -> tuple[Sequence[str], set[str]]:
    """The files of the three packages, and the modules that importing them loads."""
    *files, modules = call(python, "-c", IMPORT_ALL, cwd=cwd).splitlines()
    return files, {name for name in modules.split() if not name.startswith("_")}


def test_installed_from_the_wheel(wheel: Path, python: Path, tmp_path: Path) -> None:
    pip("--python", python, "install", "--quiet", wheel, cwd=tmp_path)
    files, modules = imported(python, tmp_path)
    assert all("site-packages" in file for file in files)
    assert EXPECTED <= modules <= EXPECTED | TOLERATED
    assert refused(python.parent / "quintet", "--version") == (
        "error: the quintet command needs: pip install 'quintet-client[cli]'\n"
    )
    installed = pip("--python", python, "list", "--format=freeze", cwd=tmp_path)
    assert {line.partition("==")[0] for line in installed.splitlines()} == {
        "googleapis-common-protos",
        "grpcio",
        "grpcio-health-checking",
        "grpcio-status",
        "protobuf",
        "quintet-client",
        "typing_extensions",
    }


def test_the_command_from_the_wheel(wheel: Path, python: Path, tmp_path: Path) -> None:
    pip("--python", python, "install", "--quiet", f"{wheel}[cli]", cwd=tmp_path)
    assert call(python.parent / "quintet", "--version", cwd=tmp_path) == "quintet 0.1.0\n"
    assert "NAmes" in call(python, "-m", "quintet_client", "price", "--example", cwd=tmp_path)
    edit = ("tenants", "add", "acme", "--file", tmp_path / "tenants.toml")
    assert refused(python.parent / "quintet", *edit) == "error: needs: pip install 'quintet-client[tenants]'\n"


def test_installed_in_place(python: Path, tmp_path: Path) -> None:
    pip("--python", python, "install", "--quiet", "-e", ROOT / "clients/python", cwd=tmp_path)
    files, modules = imported(python, tmp_path)
    assert [Path(file).relative_to(ROOT).parts[0] for file in files] == ["clients", "protos", "protos"]
    assert modules >= EXPECTED
    assert call(python.parent / "quintet", "--version", cwd=tmp_path) == "quintet 0.1.0\n"
