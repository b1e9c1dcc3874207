"""Which librdkafka properties ``KafkaConfig.extra`` refuses, and why; and how its secrets come from files.

Names and aliases: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from incident_messaging.config.values import read_text
from incident_messaging.errors import ConfigurationError

#: Properties that are made from a field, which is the one place to set them.
_FIELDS: Final[Mapping[str, str]] = {
    "allow.auto.create.topics": "kafka.create_topics",
    "auto.commit.interval.ms": "kafka.auto_commit_interval_ms",
    "bootstrap.servers": "kafka.bootstrap_servers",
    "client.id": "kafka.client_id",
    "compression.codec": "kafka.compression_type",
    "compression.type": "kafka.compression_type",
    "delivery.timeout.ms": "kafka.message_timeout_ms",
    "group.id": "kafka.group_id",
    "group.protocol": "kafka.group_protocol",
    "message.max.bytes": "max_message_size",
    "message.send.max.retries": "kafka.retries",
    "message.timeout.ms": "kafka.message_timeout_ms",
    "metadata.broker.list": "kafka.bootstrap_servers",
    "oauth_cb": "kafka.sasl_oauth_token",
    "queue.buffering.max.kbytes": "max_in_flight_bytes",
    "queue.buffering.max.messages": "max_in_flight",
    "retries": "kafka.retries",
    "sasl.mechanism": "kafka.sasl_mechanism",
    "sasl.mechanisms": "kafka.sasl_mechanism",
    "sasl.password": "kafka.sasl_password",
    "sasl.username": "kafka.sasl_username",
    "security.protocol": "kafka.enable_ssl and kafka.enable_sasl",
    "session.timeout.ms": "kafka.session_timeout_ms",
    "ssl.ca.location": "kafka.ssl_ca_file",
    "ssl.certificate.location": "kafka.ssl_cert_file",
    "ssl.key.location": "kafka.ssl_key_file",
    "ssl.key.password": "kafka.ssl_key_password",
    "topic.metadata.refresh.interval.ms": "kafka.topic_discovery_ms",
}

_ACKNOWLEDGED = "a publish has succeeded when all in-sync replicas have it"
_ORDER = "messages with one key stay in order and are stored once, also through retries"
_ONE_IN_FLIGHT = "with several requests in flight Kafka loses the first records of a new topic in silence"
_REPORTS = "every publish needs its delivery report"
_COMMITS = "only what was acknowledged is committed, by this package"
_PLACE = "a group's place is kept, and its loss is an error, never a silent jump"
_REBALANCE = "this package follows revocations itself, and a member that closes gives back what it holds"
_TOPICS = "the SDK chooses the topics of a wildcard itself"
_CHECKED = "the broker's certificate and name are checked: use kafka.ssl_ca_file"

#: Properties that would break a promise of "Delivery", each with that promise. ``name=value`` refuses
#: one value only, in any case and with blanks around it: librdkafka reads some of them so.
_PROMISES: Final[Mapping[str, str]] = {
    "acks": _ACKNOWLEDGED,
    "request.required.acks": _ACKNOWLEDGED,
    "enable.idempotence": _ORDER,
    "max.in.flight": _ONE_IN_FLIGHT,
    "max.in.flight.requests.per.connection": _ONE_IN_FLIGHT,
    "partitioner=random": _ORDER,
    "queuing.strategy": _ORDER,
    "transactional.id": "publishing happens outside transactions",
    "delivery.report.only.error": _REPORTS,
    "enabled_events": _REPORTS,
    "auto.commit.enable": _COMMITS,
    "enable.auto.commit": _COMMITS,
    "enable.auto.offset.store": _COMMITS,
    "offset.store.method": _COMMITS,
    "offset.store.path": _COMMITS,
    "auto.offset.reset": _PLACE,
    "enable.partition.eof": "the end of a partition is no message and no error",
    "group.instance.id": _REBALANCE,
    "partition.assignment.strategy": _REBALANCE,
    "topic.blacklist": _TOPICS,
    "enable.ssl.certificate.verification": _CHECKED,
    "ssl.certificate.verify_cb": _CHECKED,
    "ssl.endpoint.identification.algorithm=none": _CHECKED,
}

_CALLBACK = re.compile(r".*_cb|on_\w+|logger|opaque|default[._]topic[._]con\w+")
_SECRET = re.compile(
    r"password|passphrase|secret|token(?!\.endpoint\.url)|\.pem|_key$|oauthbearer\.config|jaas\.config"
)
#: What makes the name of a secret property that of the file that it is read from.
_FILE: Final = "_file"


def check_extra(_instance: object, _attribute: object, properties: Any) -> None:
    """Refuse what is no map of properties, and each property that is set elsewhere or breaks a promise.

    Raises:
        ConfigurationError: It names the property and the reason. Values are not shown.
    """
    if not isinstance(properties, Mapping):
        raise ConfigurationError(
            f"kafka.extra must be a mapping of librdkafka properties, not {type(properties).__name__}"
        )
    for name, value in properties.items():
        if reason := _refusal(name, value):
            raise ConfigurationError(f"kafka.extra: {name!r} is refused: {reason}")
        if f"{name}{_FILE}" in properties:
            raise ConfigurationError(f"kafka.extra: {name!r} and its {_FILE} are given; only one of them must be")


def _refusal(name: Any, value: Any) -> str | None:
    if not isinstance(name, str) or not name:
        return "a property's name is text"
    if is_file(name):
        return _refusal_of_file(name.removesuffix(_FILE), value)
    if field := _FIELDS.get(name):
        return f"set {field} instead"
    if promise := _PROMISES.get(name) or _PROMISES.get(f"{name}={str(value).strip().casefold()}"):
        return promise
    if _CALLBACK.fullmatch(name):
        return "librdkafka's callbacks and objects are this package's own"
    if not isinstance(value, str | int | float):
        return f"a value is text, a number or a bool, not {type(value).__name__}"
    return None


def _refusal_of_file(name: str, path: Any) -> str | None:
    secret = _SECRET.search(name) is not None
    if field := _FIELDS.get(name):
        return f"set {field}{_FILE if secret else ''} instead"
    if not secret:
        return f"only what holds a secret is read from a file, as ssl.keystore.password{_FILE}"
    return None if isinstance(path, str) and path else "a file is named by a text"


def is_file(name: str) -> bool:
    """Whether a property names the file from which another one, a secret, is read. None of librdkafka's is named so."""
    return name.endswith(_FILE)


def without_files(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The properties that are given themselves."""
    return {name: value for name, value in properties.items() if not is_file(name)}


def from_files(properties: Mapping[str, Any]) -> dict[str, str]:
    """The secret properties that are given by a file, as it is now.

    Raises:
        ConfigurationError: A file cannot be read; its content is not shown.
    """
    return {
        name.removesuffix(_FILE): read_text(path, f"kafka.extra: {name}")
        for name, path in properties.items()
        if is_file(name)
    }


def masked(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The properties with the values of secret ones masked."""
    return {name: "***" if _SECRET.search(name) and not is_file(name) else value for name, value in properties.items()}


def show_extra(properties: Mapping[str, Any]) -> str:
    """The properties as ``repr`` shows them, with the values of secret ones masked."""
    return repr(masked(properties))


def read_properties(text: str) -> dict[str, Any]:
    """A map from text: a JSON object, or ``name=value`` by comma.

    Raises:
        ValueError: It is neither.
    """
    if text.lstrip().startswith("{"):
        properties: dict[str, Any] = json.loads(text)
        return properties
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(text)
    return {name.strip(): value.strip() for name, _, value in pairs}
