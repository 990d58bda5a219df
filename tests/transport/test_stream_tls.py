import datetime

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from flower_psl.transport.stream_tls import SERVER_NAME, Certificate, make_certificate


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
