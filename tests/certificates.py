"""Certificates of an authority that lives as long as the test."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

PrivateKey = (
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | dsa.DSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


class Pair(NamedTuple):
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes

    def write(self, folder: Path, name: str = "server") -> None:
        """Replace NAME.pem and NAME.key in the folder, one after the other, as tools for certificates do."""
        for suffix, content in (("pem", self.certificate), ("key", self.key)):
            aside = folder / f"{name}.{suffix}.new"
            aside.write_bytes(content)
            aside.rename(folder / f"{name}.{suffix}")


class Authority:
    """Signs certificates. `days` are the first and last of its own validity, counted from now."""

    def __init__(self, key: PrivateKey | None = None, days: tuple[float, float] = (-1, 90)) -> None:
        self._key = key or ec.generate_private_key(ec.SECP256R1())
        self._name = _name("an authority")
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        unsigned = self._builder(self._name, self._key.public_key(), days).add_extension(constraints, critical=True)
        self.pem = unsigned.sign(self._key, _hash(self._key)).public_bytes(Encoding.PEM)

    def issue(self, common_name: str, *, dns: str = "", uri: str = "") -> Pair:
        """For a client with these names."""
        names: list[x509.GeneralName] = [x509.DNSName(dns)] if dns else []
        names += [x509.UniformResourceIdentifier(uri)] if uri else []
        return self._issue(common_name, names)

    def issue_server(
        self,
        common_name: str = "server",
        *,
        key: PrivateKey | None = None,
        days: tuple[float, float] = (-1, 90),
        extensions: Sequence[x509.ExtensionType] = (),
        named: bool = True,
    ) -> Pair:
        """For 127.0.0.1, or without alternative names."""
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] if named else []
        return self._issue(common_name, names, key, days, extensions)

    def intermediate(self, days: tuple[float, float] = (-1, 90)) -> "Authority":
        """An authority whose certificate this one signs."""
        below = Authority()
        below._name = _name("an intermediate authority")
        builder = self._builder(below._name, below._key.public_key(), days)
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        signed = builder.add_extension(constraints, critical=True).sign(self._key, _hash(self._key))
        below.pem = signed.public_bytes(Encoding.PEM)
        return below

    def _issue(
        self,
        common_name: str,
        names: list[x509.GeneralName],
        key: PrivateKey | None = None,
        days: tuple[float, float] = (-1, 90),
        extensions: Sequence[x509.ExtensionType] = (),
    ) -> Pair:
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(_name(common_name), key.public_key(), days)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=True)
        signed = builder.sign(self._key, _hash(self._key))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Pair(signed.public_bytes(Encoding.PEM), private)

    def _builder(
        self, subject: x509.Name, key: CertificatePublicKeyTypes, days: tuple[float, float]
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
        )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _hash(key: PrivateKey) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
