"""A certificate that signs itself, the same at every run: made of the cluster's token alone.

No file on the laptop and no state on the hosts is needed to make it again.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING

from raycluster.core.interfaces import Secret

if TYPE_CHECKING:
    from cryptography import x509

_VALID = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC))
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the curve P-256: private keys are the numbers from 1 to one below."""


def self_signed(token: Secret, name: str, hosts: Iterable[str]) -> tuple[bytes, Secret]:
    """Return certificate and key as PEM, for these names and addresses; `name` is its subject."""
    return _signed(token, name, tuple(hosts))


@lru_cache(maxsize=4)  # all hosts of a cluster have the same one
def _signed(token: Secret, name: str, hosts: tuple[str, ...]) -> tuple[bytes, Secret]:
    hosts = tuple(sorted(set(hosts)))
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.derive_private_key(1 + _number(token, "key") % (_ORDER - 1), ec.SECP256R1())
    found = (_general(host) for host in hosts)
    names = [each for each in found if each is not None]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    serial = 1 + _number(token, f"serial {list(hosts)}") % (1 << 150)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(_VALID[0])
        .not_valid_after(_VALID[1])
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return made.public_bytes(serialization.Encoding.PEM), Secret(pem.decode())


@lru_cache(maxsize=4)
def expiry(pem: bytes) -> int | None:
    """Return when the first of these certificates ends, in seconds since 1970; None for no PEM."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        return None  # nginx says what is wrong with it
    return min(int(made.not_valid_after_utc.timestamp()) for made in found)


def _number(token: Secret, purpose: str) -> int:
    """Return 512 bits that only the token's holder can make."""
    words = f"raycluster gateway {purpose}".encode()
    return int.from_bytes(hmac.new(token.reveal().encode(), words, hashlib.sha512).digest())


def _general(host: str) -> x509.GeneralName | None:
    """Return a name or address for a certificate, None for an alias that DNS cannot have."""
    from cryptography import x509

    try:
        address = ip_address(host)
    except ValueError:
        pass
    else:
        return x509.IPAddress(address)
    try:
        return x509.DNSName(host.encode("idna").decode())
    except UnicodeError:
        return None
