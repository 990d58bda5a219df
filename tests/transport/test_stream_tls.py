import datetime
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from flower_psl import ConfigError
from flower_psl.transport.stream_tls import (
    SERVER_NAME,
    Certificate,
    make_certificate,
    read_certificate,
)


def read(certificate: Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.certificate)


def test_it_is_for_the_servers_name_whatever_its_address() -> None:
    extension = read(make_certificate()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert extension.value.get_values_for_type(x509.DNSName) == [SERVER_NAME]


def test_it_holds_for_a_month_even_if_a_devices_clock_is_slow() -> None:
    certificate = read(make_certificate())
    now = datetime.datetime.now(datetime.UTC)
    assert now - certificate.not_valid_before_utc >= datetime.timedelta(hours=23)
    days_left = (certificate.not_valid_after_utc - now) / datetime.timedelta(days=1)
    assert 29 < days_left <= 30


def test_the_key_is_that_of_the_certificate_and_new_each_time() -> None:
    made = make_certificate()
    key = load_pem_private_key(made.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    assert key.public_key() == read(made).public_key()
    assert make_certificate().key != made.key


def test_the_key_is_not_shown() -> None:
    made = make_certificate()
    assert "PRIVATE" not in repr(made)
    assert made.key.decode().splitlines()[1] not in repr(made)


def test_only_itself_verifies_it() -> None:
    ours, other = read(make_certificate()), read(make_certificate())
    ours.verify_directly_issued_by(ours)
    with pytest.raises(InvalidSignature):
        ours.verify_directly_issued_by(other)
    verifier = (
        PolicyBuilder().store(Store([other])).build_server_verifier(x509.DNSName(SERVER_NAME))
    )
    with pytest.raises(VerificationError):
        verifier.verify(ours, [])


def test_devices_trust_the_runs_own_certificate_under_its_name() -> None:
    made = make_certificate()
    assert (made.roots, made.server_name) == (made.certificate, SERVER_NAME)


class Files:
    """A certificate, its key and other files, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.made, self.other = make_certificate(), make_certificate()
        self._folder = folder
        self.certificate = self.write("server.crt", self.made.certificate)
        self.key = self.write("server.key", self.made.key)
        self.chain = self.write("chain.crt", self.made.certificate + self.other.certificate)
        self.root = self.write("ca.crt", self.other.certificate)

    def write(self, name: str, content: bytes) -> str:
        path = self._folder / name
        path.write_bytes(content)
        return str(path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_users_certificate_is_its_own_root_for_the_address_of_the_server(files: Files) -> None:
    read = read_certificate(files.certificate, files.key)
    pem = files.made.certificate
    assert read == Certificate(pem, files.made.key, roots=pem, server_name="")


def test_a_chain_is_sent_and_trusted_whole(files: Files) -> None:
    read = read_certificate(files.chain, files.key)
    assert read.certificate == files.made.certificate + files.other.certificate == read.roots


def test_roots_of_a_file_of_their_own(files: Files) -> None:
    read = read_certificate(files.certificate, files.key, files.root)
    assert (read.certificate, read.roots) == (files.made.certificate, files.other.certificate)


def test_files_that_are_not_there_are_named(files: Files) -> None:
    def none(name: str) -> str:
        return re.escape(f"{name} is '/no/such', but No such file or directory; the server must")

    with pytest.raises(ConfigError, match=none("certificate_file")):
        read_certificate("/no/such", files.key)
    with pytest.raises(ConfigError, match=none("key_file")):
        read_certificate(files.certificate, "/no/such")
    with pytest.raises(ConfigError, match=none("root_certificates_file")):
        read_certificate(files.certificate, files.key, "/no/such")


def test_files_that_hold_something_else_are_named(files: Files) -> None:
    reason = r"certificate_file is '.*server\.key', which holds no certificate in PEM .*Give a fi"
    with pytest.raises(ConfigError, match=reason):
        read_certificate(files.key, files.key)
    with pytest.raises(
        ConfigError, match=f"root_{reason.replace('certificate_', 'certificates_', 1)}"
    ):
        read_certificate(files.certificate, files.key, files.key)
    with pytest.raises(
        ConfigError, match=r"key_file is '.*server\.crt', which holds no private key"
    ):
        read_certificate(files.certificate, files.certificate)


def test_a_key_with_a_password_is_refused(files: Files) -> None:
    key = load_pem_private_key(files.made.key, password=None)
    encrypted = files.write(
        "locked.key",
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
    )
    with pytest.raises(
        ConfigError, match=r"locked\.key'.*cannot ask for a password. Give the unen"
    ):
        read_certificate(files.certificate, encrypted)


def test_a_key_of_another_certificate_is_refused(files: Files) -> None:
    other = files.write("other.key", files.other.key)
    reason = (
        r"other\.key', which is not the key of the first certificate in .*CN=flower-psl.*Give the"
    )
    with pytest.raises(ConfigError, match=reason):
        read_certificate(files.certificate, other)
    wrong_order = files.write("wrong.crt", files.other.certificate + files.made.certificate)
    with pytest.raises(ConfigError, match="put the server's certificate first"):
        read_certificate(wrong_order, files.key)
