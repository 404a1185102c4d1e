"""Certificates are checked before they are used. A real gRPC server and client say which ones can be."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509 import ExtendedKeyUsage, KeyUsage
from cryptography.x509.oid import ExtendedKeyUsageOID

from server.domain import reloading_file
from server.domain.reloading_file import BadFile
from server.rpc.certificates import Certificates
from tests.certificates import Authority, Pair, PrivateKey
from tests.waiting import until

AUTHORITY = Authority()
FIRST = AUTHORITY.issue_server("first")


def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def only_agreement() -> KeyUsage:
    return KeyUsage(False, False, False, False, True, False, False, False, False)


def below(days: tuple[float, float]) -> Pair:
    """A good certificate below an intermediate one."""
    intermediate = AUTHORITY.intermediate(days)
    certificate, key = intermediate.issue_server("server")
    return Pair(certificate + intermediate.pem, key)


def by(key: PrivateKey) -> Pair:
    """A good certificate of an authority with this key."""
    return Authority(key).issue_server("server")


issue = AUTHORITY.issue_server
GOOD: list[Callable[[], Pair]] = [
    lambda: issue("rsa-2048", key=rsa_key(2048)),
    lambda: issue("p-256"),
    lambda: issue("p-384", key=ec.generate_private_key(ec.SECP384R1())),
    lambda: issue("for-servers", extensions=[ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])]),
    lambda: below((-1, 90)),
]
BAD: list[tuple[Callable[[], Pair], str]] = [
    (lambda: issue("old", days=(-90, -1)), "the certificate of old expired on "),
    (lambda: issue("early", days=(1, 90)), "the certificate of early is not valid before "),
    (lambda: below((-90, -1)), "the certificate of an intermediate authority expired on "),
    (lambda: issue(key=ed25519.Ed25519PrivateKey.generate()), "gRPC's clients cannot use its key (Ed25519); use RSA"),
    (lambda: issue(key=ed448.Ed448PrivateKey.generate()), "cannot use its key (Ed448)"),
    (lambda: issue(key=dsa.generate_private_key(1024)), "cannot use its key (DSA)"),
    (lambda: issue(key=ec.generate_private_key(ec.SECP521R1())), "cannot use its key (ECDSA on secp521r1)"),
    (lambda: issue(key=ec.generate_private_key(ec.SECP224R1())), "cannot use its key (ECDSA on secp224r1)"),
    (lambda: issue(key=ec.generate_private_key(ec.SECP256K1())), "cannot use its key (ECDSA on secp256k1)"),
    (lambda: issue(key=rsa_key(1024)), "cannot use its key (RSA of 1024 bits)"),
    (lambda: issue("a", extensions=[ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])]), "a is not for servers"),
    (lambda: issue("a", extensions=[only_agreement()]), "a is not for signatures"),
    (lambda: Pair(issue().certificate, issue().key), "the key does not belong to the certificate"),
    (lambda: Pair(b"\xef\xbb\xbf" + FIRST.certificate, FIRST.key), "gRPC's TLS library does not support them"),
    (lambda: Pair(AUTHORITY.pem + FIRST.certificate, FIRST.key), "the key does not belong to the certificate"),
    (lambda: by(dsa.generate_private_key(1024)), "server is signed with dsa-with-sha256, which clients do not accept"),
    (lambda: by(ed448.Ed448PrivateKey.generate()), "server is signed with ed448"),
    (lambda: Pair(b"", FIRST.key), "server.pem: not PEM with certificates"),
    (lambda: Pair(FIRST.certificate, FIRST.certificate), "server.key: not unencrypted PEM"),
]
WORKS_IN_PYTHON = {"RSA of 1024"}  # but not in clients on OpenSSL


class Echo(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        async def echo(request: bytes, context: object) -> bytes:
            return request

        return grpc.unary_unary_rpc_method_handler(echo)


async def serves(credentials: grpc.ServerCredentials, roots: bytes = AUTHORITY.pem, client: Pair | None = None) -> bool:
    """Whether a gRPC client can call a gRPC server with these."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    try:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    except RuntimeError:
        return False
    await server.start()
    try:
        return await can_call(port, roots, client)
    finally:
        await server.stop(None)


async def can_call(port: int, roots: bytes, client: Pair | None = None) -> bool:
    certificate, key = client or (None, None)
    credentials = grpc.ssl_channel_credentials(roots, key, certificate)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        try:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/any/Thing")
            await call(b"x", timeout=10)
        except grpc.RpcError:
            return False
        return True


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloading_file, "_POLL_SECONDS", 0.02)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    FIRST.write(tmp_path)
    return Certificates(tmp_path / "server.pem", tmp_path / "server.key", None)


@pytest.mark.parametrize("make", GOOD)
async def test_what_clients_can_use_is_taken(
    certificates: Certificates, tmp_path: Path, make: Callable[[], Pair]
) -> None:
    first = certificates.latest
    async with certificates.reloading():
        make().write(tmp_path)
        await until(lambda: certificates.latest is not first)
    assert await serves(certificates.credentials())
    assert not certificates.warnings


@pytest.mark.parametrize(("make", "why"), BAD, ids=[why for _, why in BAD])
async def test_what_clients_cannot_use_is_refused(
    certificates: Certificates, tmp_path: Path, make: Callable[[], Pair], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    pair = make()
    if not any(each in why for each in WORKS_IN_PYTHON):
        assert not await serves(grpc.ssl_server_credentials([(pair.key, pair.certificate)]))
    async with certificates.reloading():
        pair.write(tmp_path)
        await until(lambda: why in certificates.problem)
        assert certificates.warnings == [certificates.problem]
        assert f"invalid certificates are ignored, the current ones stay: {certificates.problem}" in caplog.text
    assert await serves(certificates.credentials()), "with the first one"
    with pytest.raises(BadFile) as caught:
        Certificates(tmp_path / "server.pem", tmp_path / "server.key", None)
    assert str(caught.value) == certificates.problem
    assert "\n" not in certificates.problem


async def test_a_certificate_is_taken_when_it_becomes_valid(certificates: Certificates, tmp_path: Path) -> None:
    first = certificates.latest
    async with certificates.reloading():
        issue("early", days=(2 / 86_400, 90)).write(tmp_path)
        await until(lambda: "is not valid before" in certificates.problem)
        await until(lambda: certificates.latest is not first)
        assert not certificates.problem


async def test_a_certificate_that_ends_soon_is_taken_with_a_warning(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warned(text: str) -> list[str]:
        return [record.message for record in caplog.records if text in record.message]

    async with certificates.reloading():
        issue("short", days=(-1, 2 / 86_400)).write(tmp_path)
        await until(lambda: certificates.warnings)
        assert f"{tmp_path}/server.pem: the certificate of short expires on " in certificates.warnings[0]
        await until(lambda: "of short expired on " in certificates.warnings[0])
        await asyncio.sleep(0.1)
        assert (len(warned("expires on")), len(warned("expired on"))) == (1, 1), "each is logged once"
        issue("unnamed", named=False).write(tmp_path)
        await until(lambda: "no subject alternative name" in "".join(certificates.warnings))
        FIRST.write(tmp_path)
        await until(lambda: not certificates.warnings)
    issue("short", days=(-1, 13)).write(tmp_path)
    (warning,) = Certificates(tmp_path / "server.pem", tmp_path / "server.key", None).warnings
    assert "the certificate of short expires on " in warning


async def test_authorities_of_clients(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    FIRST.write(tmp_path)
    ca = tmp_path / "ca.pem"
    files = tmp_path / "server.pem", tmp_path / "server.key", ca
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    for content, why in (
        (b"", "not PEM with certificates"),
        (b"# our authority", "not PEM with certificates"),
        (broken, "certificate 1 cannot be read"),
        (Authority(days=(-9, -1)).pem, "the certificate of an authority expired on "),
        (Authority(days=(1, 9)).pem, "the certificate of an authority is not valid before "),
        (b"\xff\xfe", "not PEM with certificates"),
    ):
        ca.write_bytes(content)
        with pytest.raises(BadFile) as caught:
            Certificates(*files)
        assert str(caught.value).startswith(f"{ca}: {why}")
    clients = Authority()
    ca.write_bytes(Authority(days=(-9, -1)).pem + clients.pem + broken)
    certificates = Certificates(*files)
    assert await serves(certificates.credentials(), client=clients.issue("a"))
    assert not await serves(certificates.credentials(), client=Authority().issue("a"))
    assert [warning.partition(" on ")[0] for warning in certificates.warnings] == [
        f"{ca}: the certificate of an authority expired",
        f"{ca}: certificate 3 cannot be read",
    ]
    assert set(certificates.ends) == {str(tmp_path / "server.pem"), str(ca)}


async def test_an_authority_that_expires_leaves_its_successor(tmp_path: Path) -> None:
    FIRST.write(tmp_path)
    old, new = Authority(days=(-9, 2 / 86_400)), Authority()
    ca = tmp_path / "ca.pem"
    ca.write_bytes(old.pem + new.pem)
    certificates = Certificates(tmp_path / "server.pem", tmp_path / "server.key", ca)
    first = certificates.latest
    async with certificates.reloading():
        await until(lambda: certificates.latest is not first)
        assert "the certificate of an authority expired on " in certificates.warnings[0]
        assert await serves(certificates.credentials(), client=new.issue("a"))
