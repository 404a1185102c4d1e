"""TLS and mutual TLS through a real server: files that do not fit, certificates that change, and whom they name."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from quintet.v1 import model_pb2
from quintet_client import AsyncQuintetClient, QuintetClient, errors

from tests.certificates import Authority, Pair
from tests.conftest import ServerProcess, start_server
from tests.e2e.test_identity import UNKNOWN_KEY, refused
from tests.tenants import add_tenant
from tests.waiting import until

Start = Callable[..., ServerProcess]


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def start(tmp_path: Path, authority: Authority) -> Iterator[Start]:
    """Starts encrypted servers without models."""
    started: list[ServerProcess] = []

    def start(**settings: str) -> ServerProcess:
        authority.issue_server().write(tmp_path)
        files = {"tls_cert": str(tmp_path / "server.pem"), "tls_key": str(tmp_path / "server.key")}
        started.append(start_server(tmp_path, tmp_path / "log.txt", llm="off", **files, **settings))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def info(
    address: str, roots: bytes, pair: Pair | None = None, key: str | None = None
) -> model_pb2.GetServerInfoResponse:
    """Over a connection of its own."""
    certificate, private = pair or (None, None)
    with QuintetClient(
        address,
        api_key=key,
        root_certificates=roots,
        client_certificate=certificate,
        client_key=private,
        timeout=10,
    ) as client:
        return client.server_info()


def works(address: str, roots: bytes) -> bool:
    try:
        info(address, roots)
    except errors.Unreachable:
        return False
    return True


async def test_certificates_are_replaced_while_calls_run(start: Start, tmp_path: Path, authority: Authority) -> None:
    server = start()
    said = (server.process.stdout or sys.stdin).readline()
    assert "Authentication is off" in said
    assert said.endswith(" Connections must use TLS.\n")
    assert f"listening on {server.address} (TLS only)" in (tmp_path / "log.txt").read_text()
    with pytest.raises(errors.Unreachable):
        info(server.address, Authority().pem)
    stopping, ended = asyncio.Event(), 0
    async with AsyncQuintetClient(server.address, root_certificates=authority.pem, timeout=10) as client:

        async def call() -> None:
            nonlocal ended
            while not stopping.is_set():
                await client.server_info()
                ended += 1

        calling = asyncio.create_task(call())
        await until(lambda: ended)

        (tmp_path / "server.pem").write_bytes(Authority().issue_server().certificate)  # the key is not this one's
        log = tmp_path / "log.txt"
        await until(lambda: "invalid certificates are ignored" in log.read_text())
        assert "the key does not belong to the certificate" in log.read_text()
        (warning,) = (await client.server_info()).warnings
        assert warning == f"{tmp_path}/server.pem and {tmp_path}/server.key: the key does not belong to the certificate"
        assert await asyncio.to_thread(works, server.address, authority.pem)

        new = Authority()
        new.issue_server().write(tmp_path)
        await until(lambda: "certificates reloaded" in log.read_text())
        assert await asyncio.to_thread(works, server.address, new.pem)
        assert not await asyncio.to_thread(works, server.address, authority.pem)
        assert not (await client.server_info()).warnings

        before = ended
        await until(lambda: ended > before)  # on the connection of the old certificate
        stopping.set()
        await calling


def test_clients_are_known_by_their_certificates(start: Start, tmp_path: Path, authority: Authority) -> None:
    clients = Authority()
    (tmp_path / "clients.pem").write_bytes(clients.pem)
    file = tmp_path / "tenants.toml"
    key = add_tenant(file, "acme", 'roles = ["admin"]\ncertificates = ["dns:Worker.acme.example", "cn:acme worker"]')
    add_tenant(file, "spiffe", 'certificates = ["uri:spiffe://acme.example/worker"]')
    server = start(tenants=str(file), tls_client_ca=str(tmp_path / "clients.pem"))

    def who(pair: Pair | None, key: str | None = None) -> str:
        """The tenant, told by what it may not do."""
        certificate, private = pair or (None, None)
        with (
            QuintetClient(
                server.address,
                api_key=key,
                root_certificates=authority.pem,
                client_certificate=certificate,
                client_key=private,
                timeout=10,
            ) as client,
            pytest.raises(errors.PermissionDenied) as caught,
        ):
            client.delete_collection("x")
        return caught.value.message.split('"')[1]

    assert who(clients.issue("anything", dns="worker.acme.example")) == "acme"
    assert who(clients.issue("acme worker")) == "acme"
    assert who(clients.issue("anything", uri="spiffe://acme.example/worker")) == "spiffe"
    assert who(clients.issue("stranger"), key) == "acme", "a key is enough"
    worker = clients.issue("acme worker")
    for pair, wrong in (
        (clients.issue("stranger", dns="worker.acme.example.evil"), None),
        (clients.issue("worker.acme.example"), None),  # the name stands in another place
        (clients.issue("acme worker", uri="spiffe://acme.example/worker"), None),  # it is two tenants'
        (worker, UNKNOWN_KEY),  # the key decides, not the certificate
    ):
        with pytest.raises(errors.Unauthenticated):
            info(server.address, authority.pem, pair, wrong)
    for stranger in (None, Authority().issue("acme worker")):
        with pytest.raises(errors.Unreachable):
            info(server.address, authority.pem, stranger, key)

    for name, content in (("ca", authority.pem), ("cert", worker.certificate), ("key", worker.key)):
        (tmp_path / name).write_bytes(content)
    command = [
        sys.executable,
        "-m",
        "quintet_client",
        "models",
        "--address",
        server.address,
        "--tls-ca",
        str(tmp_path / "ca"),
    ]
    done = subprocess.run(
        [*command, "--tls-cert", str(tmp_path / "cert"), "--tls-key", str(tmp_path / "key")],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    half = subprocess.run([*command, "--tls-cert", str(tmp_path / "cert")], capture_output=True, text=True, check=False)
    assert (half.returncode, half.stderr) == (2, "error: client_certificate and client_key must be given together\n")


def test_files_that_cannot_be_used_are_told_at_the_start(tmp_path: Path, authority: Authority) -> None:
    authority.issue_server().write(tmp_path, "a")
    authority.issue_server().write(tmp_path, "b")
    a, b = tmp_path / "a.pem", tmp_path / "b.key"
    expected = f"error: {a} and {b}: the key does not belong to the certificate\n"
    assert refused(tls_cert=str(a), tls_key=str(b)) == expected
    authority.issue_server("old", days=(-90, -1)).write(tmp_path, "old")
    told = refused(tls_cert=str(tmp_path / "old.pem"), tls_key=str(tmp_path / "old.key"))
    assert told.startswith(f"error: {tmp_path}/old.pem: the certificate of old expired on ")
    (tmp_path / "rubbish").write_bytes(b"rubbish")
    rubbish = str(tmp_path / "rubbish")
    told = refused(tls_cert=str(a), tls_key=str(tmp_path / "a.key"), tls_client_ca=rubbish)
    assert told.startswith(f"error: {rubbish}: not PEM with certificates")
