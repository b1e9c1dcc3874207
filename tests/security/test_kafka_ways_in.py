"""Every way into a real Kafka: TLS, mutual TLS, SASL with and without it. Each makes a topic, publishes, consumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from certificates import Kit
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12
from kafka_secured import ROOT, ROOT_PASSWORD, SecuredKafka, goes_through

from incident_messaging import MessagingConfig, MessagingService

Make = Callable[..., MessagingService]


def test_tls(on_kafka: Make) -> None:
    goes_through(on_kafka("TLS"))


def test_mutual_tls(on_kafka: Make, certificates: Kit) -> None:
    client = certificates.client
    goes_through(on_kafka("MTLS", ssl_cert_file=client.cert_file, ssl_key_file=client.key_file))


@pytest.mark.parametrize("from_file", [False, True], ids=["value", "file"])
def test_mutual_tls_with_a_locked_key(on_kafka: Make, certificates: Kit, tmp_path: Any, from_file: bool) -> None:
    client = certificates.locked
    (tmp_path / "password").write_text(f"{client.password}\n")
    password = {"ssl_key_password_file": tmp_path / "password"} if from_file else {"ssl_key_password": client.password}
    goes_through(on_kafka("MTLS", ssl_cert_file=client.cert_file, ssl_key_file=client.key_file, **password))


@pytest.mark.parametrize("listener", ["SASL_TLS", "SASL_BARE"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password(on_kafka: Make, listener: str, mechanism: str) -> None:
    goes_through(on_kafka(listener, sasl_mechanism=mechanism))


def test_a_password_from_a_file_and_from_the_environment(secured_kafka: SecuredKafka, tmp_path: Any) -> None:
    file = tmp_path / "password"
    file.write_text(f"{ROOT_PASSWORD}\n")
    for password in ({"SASL_PASSWORD": ROOT_PASSWORD}, {"SASL_PASSWORD_FILE": str(file)}):
        kafka = {
            "BOOTSTRAP_SERVERS": secured_kafka.address("SASL_BARE"),
            "ENABLE_SASL": "true",
            "SASL_USERNAME": ROOT,
            **password,
        }
        environ = {f"INCIDENT_MESSAGING_KAFKA__{name}": value for name, value in kafka.items()}
        config = MessagingConfig.from_env(environ=environ | {"INCIDENT_MESSAGING_BACKEND": "kafka"})
        with MessagingService(config) as service:
            assert service.health().ok


def test_what_extra_says_of_the_way_in_counts_when_a_topic_is_made(on_kafka: Make, certificates: Kit) -> None:
    """An authority in ``extra`` (`tests/backends` has librdkafka's own properties for everything else)."""
    extra = {"ssl.ca.pem": certificates.ca_file.read_text()}
    goes_through(on_kafka("TLS", ssl_ca_file=None, extra=extra))


def test_a_secret_among_the_properties_comes_from_a_file(on_kafka: Make, certificates: Kit, tmp_path: Any) -> None:
    """Key and certificate in one encrypted file of PKCS #12, for which there are no fields."""
    client = certificates.client
    key = serialization.load_pem_private_key(client.key_file.read_bytes(), None)
    certificate = x509.load_pem_x509_certificate(client.cert_file.read_bytes())
    locked = serialization.BestAvailableEncryption(b"the store's own")
    (tmp_path / "client.p12").write_bytes(
        pkcs12.serialize_key_and_certificates(b"client", key, certificate, None, locked)
    )
    (tmp_path / "password").write_text("the store's own\n")
    store = {"ssl.keystore.location": str(tmp_path / "client.p12")}
    goes_through(on_kafka("MTLS", extra=store | {"ssl.keystore.password_file": str(tmp_path / "password")}))


def test_tokens_that_librdkafka_makes_by_itself(on_kafka: Make) -> None:
    extra = {"enable.sasl.oauthbearer.unsecure.jwt": "true", "sasl.oauthbearer.config": f"principal={ROOT}"}
    goes_through(on_kafka("SASL_BARE", sasl_mechanism="OAUTHBEARER", extra=extra))
