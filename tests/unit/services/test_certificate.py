"""The certificate that the cluster makes for itself."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from raycluster.core.interfaces import Secret
from raycluster.services.certificate import expiry, self_signed
from raycluster.services.gateway import gateway
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec
from raycluster.spec.services import Tls

HOSTS = ["gpu.example.org", "203.0.113.7", "fd00::1", "bücher.example"]


def test_it_is_the_same_at_every_run_and_another_for_another_cluster() -> None:
    first, again = (self_signed(Secret("t"), "q", order) for order in (HOSTS, HOSTS[::-1]))
    assert first == again
    assert first != self_signed(Secret("u"), "q", HOSTS)
    assert first[0] != self_signed(Secret("t"), "q", HOSTS[:2])[0]


def test_it_is_for_the_hosts_names_and_addresses() -> None:
    made = x509.load_pem_x509_certificate(self_signed(Secret("t"), "q", HOSTS)[0])
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["xn--bcher-kva.example", "gpu.example.org"]
    addresses = names.get_values_for_type(x509.IPAddress)
    assert [str(address) for address in addresses] == ["203.0.113.7", "fd00::1"]
    made.verify_directly_issued_by(made)


def test_an_alias_that_dns_cannot_have_is_left_out() -> None:
    odd = ["a..b", "a" * 64, "fe80::1%eth0", "gpu_1"]
    made = x509.load_pem_x509_certificate(self_signed(Secret("t"), "q", odd)[0])
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gpu_1"]


def test_python_takes_certificate_and_key_for_a_pair(tmp_path: Path) -> None:
    certificate, key = self_signed(Secret("t"), "q", HOSTS)
    (tmp_path / "c.pem").write_bytes(certificate)
    (tmp_path / "k.pem").write_text(key.reveal())
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    ssl.create_default_context(cafile=str(tmp_path / "c.pem"))


def test_the_gateway_has_it_where_it_is_asked_for() -> None:
    spec = ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "head": {"host": "h.example"},
            "gateway": {"tls": {"self_signed": True}},
        }
    )
    process = gateway(spec, spec.hosts[0], Wiring({"head": "10.0.0.1"}, Secret("t")))
    assert process
    made = x509.load_pem_x509_certificate(process.live_files["gateway/cert.pem"])
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "h.example" in names.get_values_for_type(x509.DNSName)
    assert b"ssl_certificate cert.pem;" in process.live_files["gateway/nginx.conf"]
    assert b"PRIVATE KEY" in process.live_files["gateway/key.pem"]


@pytest.mark.parametrize(
    "tls",
    [{}, {"cert": "c"}, {"key": "file:k"}, {"cert": "c", "key": "file:k", "self_signed": True}],
)
def test_half_a_certificate_is_refused(tls: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="self_signed = true"):
        Tls.model_validate(tls)


def test_the_end_of_a_chain_is_that_of_its_first_to_end() -> None:
    own, _ = self_signed(Secret("t"), "q", HOSTS)
    assert expiry(own) == datetime(2036, 1, 1, tzinfo=UTC).timestamp()
    assert expiry(short_lived() + own) == datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    assert expiry(b"no certificate") is None


def short_lived() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "q")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(key.public_key())
    builder = builder.not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
    made = builder.not_valid_after(datetime(2027, 1, 1, tzinfo=UTC)).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)
