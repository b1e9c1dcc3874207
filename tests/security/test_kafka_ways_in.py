"""Every way into a real Kafka: TLS, mutual TLS, SASL with and without it. Each makes a topic, publishes, consumes."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from certificates import Kit
from kafka_secured import REAUTH_MS, ROOT, ROOT_PASSWORD, SecuredKafka, Tokens
from waiting import until

from incident_messaging import MessagingConfig, MessagingService

Make = Callable[..., MessagingService]


def goes_through(service: MessagingService) -> None:
    """A topic is made, a message published, and one consumed."""
    topic = f"t{uuid.uuid4().hex[:12]}"
    with service:
        service.publish(topic, {"n": 1})
        with service.subscribe(topic, group="g") as subscription:
            delivery = subscription.next(15.0)
            assert delivery is not None
            assert delivery.payload == {"n": 1}


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


def test_a_token(on_kafka: Make) -> None:
    tokens = Tokens()
    goes_through(on_kafka("SASL_TLS", sasl_mechanism="OAUTHBEARER", sasl_oauth_token=tokens))
    assert tokens.asked >= 3, "the producer, what makes the topic, and the consumer each have one of their own"


def test_tokens_are_fetched_anew_before_they_end(on_kafka: Make, secured_kafka: SecuredKafka) -> None:
    """The broker asks again every two seconds, tokens are good for as long, and nobody calls the service."""
    tokens = Tokens(seconds=REAUTH_MS / 1000)
    secured_kafka.make("secured.refreshed", "secured.dead-letter")
    service = on_kafka("REAUTH", sasl_mechanism="OAUTHBEARER", sasl_oauth_token=tokens)
    seen: list[Any] = []
    with service, service.subscribe("refreshed", callback=lambda delivery: seen.append(delivery.payload), group="g"):
        service.publish("refreshed", {"n": 0})
        asked = tokens.asked
        assert until(lambda: tokens.asked >= asked + 4, 4 * REAUTH_MS / 1000), "twice for producer and consumer"
        service.publish("refreshed", {"n": 1})
        assert until(lambda: {"n": 1} in seen)
        assert service.health().ok


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


def test_tokens_that_librdkafka_makes_by_itself(on_kafka: Make) -> None:
    extra = {"enable.sasl.oauthbearer.unsecure.jwt": "true", "sasl.oauthbearer.config": f"principal={ROOT}"}
    goes_through(on_kafka("SASL_BARE", sasl_mechanism="OAUTHBEARER", extra=extra))
