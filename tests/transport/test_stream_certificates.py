"""Whom devices believe to be the server: certificates of the user's own, and plain text."""

import datetime
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from flower_psl.transport.stream_tls import Certificate, make_certificate, read_certificate

if TYPE_CHECKING:
    from tests.transport.conftest import Echo, MakeLab

LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


class Issued(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


def issue(
    name: str, holds_for: x509.GeneralName | None = None, issuer: Issued | None = None
) -> Issued:
    """Issue a certificate, of an authority if it holds for no address."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=holds_for is None, path_length=None), True)
    )
    if holds_for:
        builder = builder.add_extension(x509.SubjectAlternativeName([holds_for]), critical=False)
    return Issued(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def read(folder: Path, leaf: Issued, *chain: Issued, root: Issued | None = None) -> Certificate:
    """Read the files that a user would write."""
    files = {
        "server.crt": b"".join(each.pem for each in (leaf, *chain)),
        "server.key": leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "ca.crt": root.pem if root else b"",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    crt, key, ca = (str(folder / name) for name in files)
    return read_certificate(crt, key, ca if root else "")


@pytest.mark.parametrize("kind", ["self-signed", "leaf", "chain", "roots of their own"])
def test_devices_believe_a_users_certificate(
    make_lab: "MakeLab", make_echo: "type[Echo]", tmp_path: Path, kind: str
) -> None:
    authority = issue("authority")
    leaf = issue("server", LOOPBACK, None if kind == "self-signed" else authority)
    certificate = read(
        tmp_path,
        leaf,
        *([authority] if kind == "chain" else []),
        root=authority if kind == "roots of their own" else None,
    )
    lab = make_lab(1, certificate=certificate)
    lab.serve({1: make_echo(1)})
    assert lab.exchange(1) == {1: 1.0}


@pytest.mark.parametrize(
    ("holds_for", "host"),
    [(LOOPBACK, "localhost"), (x509.DNSName("localhost"), "127.0.0.1")],
    ids=["address", "name"],
)
def test_the_host_that_devices_connect_to_is_the_one_they_check(
    make_lab: "MakeLab",
    make_echo: "type[Echo]",
    tmp_path: Path,
    holds_for: x509.GeneralName,
    host: str,
) -> None:
    certificate = read(tmp_path, issue("server", holds_for))
    lab = make_lab(1, certificate=certificate, reconnect_timeout_s=0.3)
    other = "localhost" if host == "127.0.0.1" else "127.0.0.1"
    error = lab.start({1: make_echo(1)}, host=host).error()
    assert "Hostname Verification Check failed" in str(error)
    lab.serve({1: make_echo(1)}, host=other)
    assert lab.exchange(1) == {1: 1.0}


def test_devices_do_not_believe_a_certificate_of_another_authority(
    make_lab: "MakeLab", make_echo: "type[Echo]", tmp_path: Path
) -> None:
    leaf = issue("server", LOOPBACK, issue("authority"))
    certificate = read(tmp_path, leaf, root=issue("another authority"))
    lab = make_lab(1, certificate=certificate, reconnect_timeout_s=0.3)
    assert "CERTIFICATE_VERIFY_FAILED" in str(lab.start({1: make_echo(1)}).error())


def test_plain_text_still_needs_the_token(make_lab: "MakeLab", make_echo: "type[Echo]") -> None:
    lab = make_lab(1, 2, certificate=None)
    lab.serve({1: make_echo(1)})
    assert lab.exchange(1) == {1: 1.0}
    stranger = lab.raw(lab.hello(2, lab.tokens[1]))
    assert stranger.end() == (grpc.StatusCode.UNAUTHENTICATED, "")
    assert lab.transport.refused == {"wrong token": 1}


def test_a_device_with_a_certificate_does_not_talk_in_plain_text(
    make_lab: "MakeLab", make_echo: "type[Echo]"
) -> None:
    lab = make_lab(1, certificate=None, reconnect_timeout_s=0.3)
    serving = lab.start({1: make_echo(1)}, roots=make_certificate().roots)
    assert isinstance(serving.error(), ConnectionError)
    assert not lab.transport.refused
