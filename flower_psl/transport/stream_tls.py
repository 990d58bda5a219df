"""What the server proves itself with: a certificate made for one run, or the user's own."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flower_psl.errors import ConfigError

# The name in a run's own certificate, whatever address devices reach the server at: behind
# NAT or in containers the server does not know its own.
SERVER_NAME = "flower-psl"

_LIFETIME = datetime.timedelta(days=30)
_CLOCK_SKEW = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, and what devices hold it against.

    Attributes
    ----------
    certificate : bytes
        The certificate, and those that lead from it to a root, if any; PEM.
    key : bytes
        Its private key, PEM.
    roots : bytes
        The roots that devices trust, PEM.
    server_name : str
        The name that devices check it for; empty for the host that they connect to.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    roots: bytes
    server_name: str


def make_certificate() -> Certificate:
    """Make a self-signed certificate for `SERVER_NAME` with a key of its own (P-256)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return Certificate(
        certificate=pem,
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        roots=pem,
        server_name=SERVER_NAME,
    )


def read_certificate(certificate_file: str, key_file: str, roots_file: str = "") -> Certificate:
    """Read a certificate, its key and the roots that devices are to trust.

    Parameters
    ----------
    certificate_file, key_file : str
        Paths of the certificate, or a chain that begins with it, and its key; PEM.
    roots_file : str
        Path of the roots, PEM; without it they are what `certificate_file` holds.

    Raises
    ------
    ConfigError
        If a file cannot be read or holds something else, or the key is another one's.
    """
    certificate, key = _read("certificate_file", certificate_file), _read("key_file", key_file)
    roots = _read("root_certificates_file", roots_file) if roots_file else certificate
    chain = _certificates("certificate_file", certificate_file, certificate)
    _certificates("root_certificates_file", roots_file or certificate_file, roots)
    try:
        public_key = serialization.load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"key_file is {key_file!r}, which holds no private key in PEM ({error}); the server "
            "cannot ask for a password. Give the unencrypted key of the certificate."
        ) from error
    if public_key != chain[0].public_key():
        raise ConfigError(
            f"key_file is {key_file!r}, which is not the key of the first certificate in "
            f"{certificate_file!r} ({chain[0].subject.rfc4514_string()}); the two must belong "
            "together. Give the key it was made with, and put the server's certificate first."
        )
    return Certificate(certificate, key, roots, server_name="")


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{name} is {path!r}, but {error.strerror}; the server must be able to read it. Give "
            "the absolute path of a PEM file."
        ) from error


def _certificates(name: str, path: str, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError(
            f"{name} is {path!r}, which holds no certificate in PEM ({error}). Give a file that "
            "has '-----BEGIN CERTIFICATE-----' in it."
        ) from error
