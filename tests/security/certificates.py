"""Certificates of the tests' own, made on the spot: authorities, and what they sign. EC keys, which take a millisecond.

Every file is PEM, and keys are PKCS #8, so OpenSSL, NATS, librdkafka and Kafka's PEM key stores all take them::

    authority = Authority(folder, "ours")
    server = authority.issue("server")                         # for 127.0.0.1 and localhost
    client = authority.issue("client", hosts=())               # for mutual TLS; its subject is CN=client
    old = authority.issue("old", expired=True)
    elsewhere = authority.issue("elsewhere", hosts=("broker.example",))
    locked = authority.issue("locked", password="for the key")
    other = Authority(folder, "other")                         # signs for others; nobody here trusts it

`Kit` has one of each, and the fixture ``certificates`` of this folder has one `Kit` for all tests.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: What servers of these tests are reached by.
LOOPBACK = ("127.0.0.1", "localhost")

_DAY = datetime.timedelta(days=1)


@attrs.frozen
class Certificate:
    """A certificate and its key on disk.

    Attributes:
        cert_file: The certificate (PEM), without the authority's.
        key_file: Its key (PEM, PKCS #8), encrypted where a password was given.
        password: What the key is encrypted with, or ``None``.
    """

    cert_file: Path
    key_file: Path
    password: str | None = None

    @property
    def pem(self) -> str:
        """Key and certificate in one text, as a key store of Kafka's type PEM wants them."""
        return self.key_file.read_text() + self.cert_file.read_text()

    def replace_by(self, other: Certificate) -> None:
        """Put another one into the same files, as a rotation does."""
        self.cert_file.write_bytes(other.cert_file.read_bytes())
        self.key_file.write_bytes(other.key_file.read_bytes())


class Authority:
    """A certificate authority of its own; ``ca_file`` is what those who trust it are given."""

    def __init__(self, folder: Path, name: str) -> None:
        """Make its key and certificate; files go to ``folder`` and begin with ``name``."""
        self._folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _named(f"Authority {name}")
        builder = _builder(self._subject, self._subject, self._key, expired=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs=True), critical=True)
        self.ca_file = folder / f"{name}-ca.pem"
        self.ca_file.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))

    def issue(
        self, name: str, *, hosts: Sequence[str] = LOOPBACK, expired: bool = False, password: str | None = None
    ) -> Certificate:
        """Sign a certificate for servers and clients alike, with the subject ``CN=<name>``.

        Args:
            name: The subject's common name, and part of the files' names (the same one again writes over them).
            hosts: The names and addresses that it is good for; none for a client's.
            expired: Whether it ended yesterday instead of in a month.
            password: What its key is encrypted with.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_named(name), self._subject, key, expired=expired)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs=False), critical=True)
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(each) for each in hosts]), critical=False
            )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        made = Certificate(
            self._folder / f"{self._name}-{name}.pem", self._folder / f"{self._name}-{name}.key", password
        )
        made.cert_file.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        made.key_file.write_bytes(_key_pem(key, password))
        made.key_file.chmod(0o600)
        return made


class Kit:
    """One of each, which tests share and leave as they are; what is to be changed is issued anew.

    Attributes:
        authority: Whom both sides trust.
        server: For a server on ``127.0.0.1`` and ``localhost``.
        client: For a client, ``CN=client``.
        locked: The same with an encrypted key.
        expired: For a server, and over since yesterday.
        wrong_host: For a server of another name.
        other: An authority that nobody trusts, unless a test says so.
        others_server: A server's certificate signed by that one.
        others_client: A client's, signed by that one.
    """

    def __init__(self, folder: Path) -> None:
        """Make all of them in ``folder``."""
        self.folder = folder
        self.authority = Authority(folder, "ours")
        self.server = self.authority.issue("server")
        self.client = self.authority.issue("client", hosts=())
        self.locked = self.authority.issue("locked", hosts=(), password="the key's own password")
        self.expired = self.authority.issue("expired", expired=True)
        self.wrong_host = self.authority.issue("elsewhere", hosts=("broker.example",))
        self.other = Authority(folder, "other")
        self.others_server = self.other.issue("server")
        self.others_client = self.other.issue("client", hosts=())

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that both sides trust."""
        return self.authority.ca_file


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, expired: bool
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * _DAY)
        .not_valid_after(now - _DAY if expired else now + 30 * _DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey, password: str | None) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption(),
    )
