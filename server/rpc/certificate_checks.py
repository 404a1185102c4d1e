"""Finds out which certificates clients can use, before the server uses them: with others every handshake fails, and
gRPC logs nothing.

The key types are those with which a handshake between gRPC's own server and client succeeds
(tests/rpc/test_certificates.py). RSA keys below 2048 bits and signatures with SHA-1 are refused, because
clients on OpenSSL and in Go refuse them.
"""

import contextlib
import math
import re
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.oid import SignatureAlgorithmOID as Signature

from server.domain.reloading_file import BadFile, Contents, NotYet
from server.rpc.certificates import Checked, End

SOON_SECONDS = 14 * 24 * 3600.0
_MIN_RSA_BITS = 2048
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_SIGNATURES = frozenset(
    {
        *(Signature.RSA_WITH_SHA224, Signature.RSA_WITH_SHA256, Signature.RSA_WITH_SHA384, Signature.RSA_WITH_SHA512),
        *(Signature.ECDSA_WITH_SHA224, Signature.ECDSA_WITH_SHA256, Signature.ECDSA_WITH_SHA384),
        *(Signature.ECDSA_WITH_SHA512, Signature.RSASSA_PSS, Signature.ED25519),
    }
)
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def check(files: Sequence[Path], contents: Contents) -> Checked:
    """The configuration of certificate chain, key and maybe client authorities. Raises BadFile."""
    (chain_file, key_file, *ca_files), (chain_pem, key_pem, *ca_pems) = files, contents
    chain = _certificates(chain_file, chain_pem)
    _check_key(chain_file, key_file, key_pem, chain[0])
    remarks = list(_check_chain(chain_file, chain))
    ends = [_end(chain_file, each) for each in chain]
    ca_pem, changes = None, math.inf
    for file, pem in zip(ca_files, ca_pems, strict=True):
        authorities = _authorities(file, pem)
        ca_pem, changes = authorities.pem, authorities.changes
        remarks += authorities.problems
        ends += authorities.ends
    _check_with_grpc(files, chain_pem, key_pem, ca_pem)
    return Checked(grpc.ssl_server_certificate_configuration([(key_pem, chain_pem)], ca_pem), ends, remarks, changes)


def _certificates(file: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise BadFile(f"{file}: not PEM with certificates") from None


def _check_key(chain_file: Path, key_file: Path, pem: bytes, leaf: x509.Certificate) -> None:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise BadFile(f"{key_file}: not unencrypted PEM (the key needs a password)") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadFile(f"{key_file}: not unencrypted PEM with a private key") from None
    try:
        owner = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        owner = None
    if owner is None or (kind := _unusable_kind(owner)):
        known = "RSA of 2048 bits or more, ECDSA on P-256 or P-384"
        raise BadFile(f"{chain_file}: gRPC's clients cannot use its key ({kind if owner else 'unknown'}); use {known}")
    if _public_bytes(key.public_key()) != _public_bytes(owner):
        raise BadFile(f"{chain_file} and {key_file}: the key does not belong to the certificate")


def _public_bytes(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _unusable_kind(key: PublicKeyTypes) -> str:
    """What is wrong with a server's kind of key, or ""."""
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA of {key.key_size} bits" if key.key_size < _MIN_RSA_BITS else ""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "" if isinstance(key.curve, _CURVES) else f"ECDSA on {key.curve.name}"
    return type(key).__name__.removesuffix("PublicKey").strip("_")  # Ed25519, Ed448, DSA


def _check_chain(file: Path, chain: Sequence[x509.Certificate]) -> Iterator[str]:
    """Yields remarks. Raises BadFile for what clients refuse."""
    leaf, *others = chain
    _check_time(file, leaf)
    _check_usage(file, leaf)
    _check_signature(file, leaf)
    issuers = [each for each in others if each.subject == leaf.issuer and each.subject != leaf.subject]
    if issuers and not any(map(_is_valid_now, issuers)):
        _check_time(file, issuers[0])
    for issuer in issuers:
        _check_signature(file, issuer)
    if not _has_names(leaf):
        yield f"{file}: the certificate of {_subject(leaf)} has no subject alternative name; some clients refuse it"


def _check_time(file: Path, certificate: x509.Certificate) -> None:
    start, end, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, time.time()
    if now >= end.timestamp():
        raise BadFile(f"{file}: the certificate of {_subject(certificate)} expired on {end:%Y-%m-%d %H:%M UTC}")
    if now < start.timestamp():
        what = f"the certificate of {_subject(certificate)} is not valid before {start:%Y-%m-%d %H:%M UTC}"
        raise NotYet(f"{file}: {what}")


def _is_valid_now(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_before_utc.timestamp() <= time.time() < certificate.not_valid_after_utc.timestamp()


def _check_usage(file: Path, leaf: x509.Certificate) -> None:
    """Extensions that limit what the key is for. Those that cannot be read are left to gRPC."""
    with contextlib.suppress(x509.ExtensionNotFound, ValueError):
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(purposes):
            raise BadFile(f"{file}: the certificate of {_subject(leaf)} is not for servers (extended key usage)")
    with contextlib.suppress(x509.ExtensionNotFound, ValueError):
        if not leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            raise BadFile(f"{file}: the certificate of {_subject(leaf)} is not for signatures (key usage)")


def _check_signature(file: Path, certificate: x509.Certificate) -> None:
    """The signature of one that is its own issuer is not checked by clients either."""
    found = certificate.signature_algorithm_oid
    if found not in _SIGNATURES and certificate.issuer != certificate.subject:
        name = getattr(found, "_name", found.dotted_string)
        what = f"the certificate of {_subject(certificate)} is signed with {name}, which clients do not accept"
        raise BadFile(f"{file}: {what}; have it signed with SHA-256")


def _has_names(leaf: x509.Certificate) -> bool:
    try:
        return bool(list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value))
    except (x509.ExtensionNotFound, ValueError):
        return False


class _Authorities(NamedTuple):
    """Those that can vouch for clients now, why others cannot, and when that changes."""

    pem: bytes
    ends: list[End]
    problems: list[str]
    changes: float


def _authorities(file: Path, pem: bytes) -> _Authorities:
    """Raises BadFile if none can be used.

    gRPC gets no others: where two have the same name, it may take the expired one and refuse the client.
    """
    usable, ends, changes = [], [], [math.inf]
    problems: list[BadFile] = []
    for number, block in enumerate(_BLOCK.findall(pem), 1):
        try:
            certificate = x509.load_pem_x509_certificate(block)
        except ValueError:
            problems.append(BadFile(f"{file}: certificate {number} cannot be read"))
            continue
        times = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        changes += [each for each in times if each > time.time()]
        try:
            _check_time(file, certificate)
        except BadFile as error:
            problems.append(error)
        else:
            usable.append(block)
            ends.append(_end(file, certificate))
    if not usable:
        raise problems[0] if problems else BadFile(f"{file}: not PEM with certificates")
    return _Authorities(b"\n".join(usable), ends, [str(error) for error in problems], min(changes))


def _check_with_grpc(files: Sequence[Path], chain: bytes, key: bytes, client_ca: bytes | None) -> None:
    """Whether gRPC's TLS library takes them all, on a socket of their own."""
    credentials = grpc.ssl_server_credentials([(key, chain)], client_ca, require_client_auth=client_ca is not None)
    server = grpc.server(ThreadPoolExecutor(1))  # never started
    address = f"unix-abstract:quintet-{secrets.token_hex(16)}" if sys.platform == "linux" else "127.0.0.1:0"
    try:
        server.add_secure_port(address, credentials)
    except RuntimeError:
        raise BadFile(
            f"{', '.join(map(str, files))}: gRPC's TLS library does not support them, or cannot read them"
        ) from None
    finally:
        server.stop(None)


def _end(file: Path, certificate: x509.Certificate) -> End:
    return End(file, _subject(certificate), certificate.not_valid_after_utc.timestamp())


def _subject(certificate: x509.Certificate) -> str:
    """Its common name, or all of its name."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string() or "(no name)"
