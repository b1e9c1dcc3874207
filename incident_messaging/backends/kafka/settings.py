"""From the configuration to librdkafka's properties.

Names and meanings: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from incident_messaging.backends.base import ConsumerSpec
from incident_messaging.backends.kafka import errors
from incident_messaging.backends.kafka.link import log
from incident_messaging.config import KafkaConfig, MessagingConfig
from incident_messaging.config.extra import without_files
from incident_messaging.errors import ConfigurationError

#: librdkafka's ``batch.size`` by default, what is worth a request, and what Kafka puts before a batch.
_BATCH, _SMALL_BATCH, BATCH_HEAD = 1_000_000, 65_536, 100
#: librdkafka's own upper limits.
_MOST_BYTES = 1_000_000_000
_MOST = 2_147_483_647
#: What Kafka adds to body, key and headers of a message; `max_message_size` does not count it.
_FRAMING = 65_536
#: The longest a broker holds a fetch back while nothing is new. A topic that is added waits for it.
_FETCH_WAIT_MS = 100


def connection(config: KafkaConfig) -> dict[str, Any]:
    """What every client of a broker needs: where it is, and how to get in; ``extra`` may hold some of that, too.

    Raises:
        ConfigurationError: A file cannot be read.
    """
    properties: dict[str, Any] = {
        "bootstrap.servers": config.bootstrap_servers,
        "client.id": config.client_id,
        "security.protocol": _protocol(config),
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "socket.timeout.ms": 10_000,
        "socket.keepalive.enable": True,
        "socket.nagle.disable": True,
    }
    # Secrets have no name here: a file that cannot be read raises, and a traceback may show a frame's names.
    return {
        **properties,
        **(_tls(config) if config.enable_ssl else {}),
        **(_sasl(config) if config.enable_sasl else {}),
        **config.resolve_extra(),
    }


def admin(config: KafkaConfig) -> dict[str, Any]:
    """What a client needs that makes topics or deletes records; what it would log is in its answers."""
    return connection(config) | {"log_level": 0}


def producer(config: MessagingConfig) -> dict[str, Any]:
    """What the producer needs beside callbacks."""
    kafka = config.kafka
    # A call's own time is watched by the reports thread; the client's must not end first.
    timeout = max(kafka.message_timeout_ms, config.publish_timeout_ms)
    properties = connection(kafka) | {
        "acks": "all",
        "enable.idempotence": True,
        # One at a time: docs/decisions/0009-one-request-in-flight.rst.
        "max.in.flight.requests.per.connection": 1,
        "compression.type": kafka.compression_type,
        "message.max.bytes": largest(config),
        "message.timeout.ms": timeout,
        "retries": kafka.retries,
        "retry.backoff.max.ms": 1000,
        "linger.ms": 0,
        "batch.size": batch_size(config),
        # Keys land where Java's clients put them, so that other services' order per key is ours too.
        "partitioner": "murmur2_random",
        "topic.metadata.propagation.max.ms": min(2000, timeout),
        # The service's own window is the limit; what has timed out there still counts here for a while.
        "queue.buffering.max.messages": min(_MOST, max(100_000, 10 * config.max_in_flight)),
        "queue.buffering.max.kbytes": min(_MOST, max(1_048_576, 4 * config.max_in_flight_bytes // 1024)),
    }
    return _with_extra(properties, kafka, debug="feature")


def consumer(config: MessagingConfig, spec: ConsumerSpec) -> dict[str, Any]:
    """What a consumer needs beside callbacks."""
    kafka = config.kafka
    most = largest(config)
    properties = connection(kafka) | {
        "group.id": spec.name,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "allow.auto.create.topics": False,
        "enable.partition.eof": False,
        "topic.metadata.refresh.interval.ms": 10_000,
        "fetch.wait.max.ms": _FETCH_WAIT_MS,
        "fetch.queue.backoff.ms": 20,
        "fetch.error.backoff.ms": 100,
        "fetch.max.bytes": max(52_428_800, most),
        "message.max.bytes": most,
        "receive.message.max.bytes": max(100_000_000, most + 1024),
        "queued.min.messages": 10_000,
        "queued.max.messages.kbytes": 16_384,
    }
    return _with_extra(properties | (_membership(kafka) if spec.group else {}), kafka, debug="topic")


def looker(config: MessagingConfig, name: str) -> dict[str, Any]:
    """What a consumer needs that only looks into a topic: no group, no commit."""
    properties = connection(config.kafka) | {
        "group.id": name,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "allow.auto.create.topics": False,
        "enable.partition.eof": True,
        "fetch.wait.max.ms": _FETCH_WAIT_MS,
        "receive.message.max.bytes": max(100_000_000, largest(config) + 1024),
        "queued.max.messages.kbytes": 16_384,
    }
    return {**properties, **without_files(config.kafka.extra)}


def _membership(config: KafkaConfig) -> dict[str, Any]:
    if config.group_protocol == "consumer":
        return {"group.protocol": "consumer"}  # times and assignor are the broker's there
    timeout = config.session_timeout_ms
    properties: dict[str, Any] = {
        "session.timeout.ms": timeout,
        "max.poll.interval.ms": max(300_000, timeout),
        "heartbeat.interval.ms": max(1, min(500, timeout // 3)),
    }
    if not config.exact_group_id:
        # Members of other services may not know it; ours do, and keep what is not moved.
        properties["partition.assignment.strategy"] = "cooperative-sticky"
    return properties


def is_incremental(config: KafkaConfig) -> bool:
    """Whether a group's partitions are given and taken one by one, not all at every change."""
    return config.group_protocol == "consumer" or not config.exact_group_id


def batch_size(config: MessagingConfig) -> int:
    """Bytes of messages that go together: a broker compares them with its limit for one message, and refuses all."""
    return min(_BATCH, max(_SMALL_BATCH, config.max_message_size - BATCH_HEAD))


def largest(config: MessagingConfig) -> int:
    """What a message may take on its way, all that Kafka adds to it included."""
    return min(_MOST_BYTES - 1024, config.max_message_size + _FRAMING)


def _protocol(config: KafkaConfig) -> str:
    return ("sasl_" if config.enable_sasl else "") + ("ssl" if config.enable_ssl else "plaintext")


def _tls(config: KafkaConfig) -> dict[str, Any]:
    for name in ("ssl_ca_file", "ssl_cert_file", "ssl_key_file"):
        _must_be_readable(f"kafka.{name}", getattr(config, name))
    return _given(
        {
            "ssl.ca.location": config.ssl_ca_file,
            "ssl.certificate.location": config.ssl_cert_file,
            "ssl.key.location": config.ssl_key_file,
            "ssl.key.password": config.resolve_ssl_key_password(),
        }
    )


def _must_be_readable(name: str, file: str | None) -> None:
    # librdkafka says neither which file nor why. A folder is allowed: OpenSSL takes one of authorities.
    try:
        if file is not None:
            os.close(os.open(file, os.O_RDONLY))
    except OSError as exc:
        raise ConfigurationError(f"{name}: cannot read {file}: {exc.strerror}", backend="kafka") from exc


def _sasl(config: KafkaConfig) -> dict[str, Any]:
    token = config.sasl_oauth_token
    return _given(
        {
            "sasl.mechanism": config.sasl_mechanism,
            "sasl.username": config.sasl_username,
            "sasl.password": config.resolve_sasl_password(),
            "oauth_cb": None if token is None else _logged(token),
        }
    )


def _logged(token: Callable[[], tuple[str, float]]) -> Callable[[str], tuple[str, float]]:
    """The source of tokens as librdkafka calls it, on a thread of its own, before the last one expires.

    What the source raises librdkafka swallows, and asks again ten seconds later.
    """

    def fetch(_properties: str) -> tuple[str, float]:
        try:
            return errors.checked_token(token())
        except Exception as exc:
            log.warning("sasl_oauth_token gave no token: %s: %s", type(exc).__name__, exc)
            raise

    return fetch


def _given(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in properties.items() if value is not None}


def _with_extra(properties: dict[str, Any], config: KafkaConfig, *, debug: str) -> dict[str, Any]:
    # Some things librdkafka tells in its log alone (link.py).
    debug = f"{config.extra['debug']},{debug}" if "debug" in config.extra else debug
    return {**properties, **without_files(config.extra), "debug": debug}
