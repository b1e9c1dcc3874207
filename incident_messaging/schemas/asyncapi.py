"""An AsyncAPI 3.0 document of a configuration's brokers and topics, and of what travels there.

https://www.asyncapi.com/docs/reference/specification/v3.0.0. It names no user and no secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from incident_messaging import topics
from incident_messaging.codec import CONTENT_TYPE, CORRELATION_ID, MESSAGE_ID
from incident_messaging.config import KafkaConfig, MessagingBackend, MessagingConfig, NatsConfig
from incident_messaging.envelope import VERSION
from incident_messaging.events import VARIANTS, IncidentEvent
from incident_messaging.schemas.wire import Schema, definitions, envelope, example

_SCHEMAS: Final = "#/components/schemas/"
_MESSAGES: Final = "#/components/messages/"
_SECURITY: Final = "#/components/securitySchemes/"

#: Of AsyncAPI's binding for Kafka.
_BINDING: Final = {"bindingVersion": "0.5.0"}
_NATS_PORT: Final = 4222
_DEAD_LETTER: Final = "DeadLetter"

_SASL: Final[dict[str, Schema]] = {
    "PLAIN": {"type": "plain"},
    "SCRAM-SHA-256": {"type": "scramSha256"},
    "SCRAM-SHA-512": {"type": "scramSha512"},
    "OAUTHBEARER": {"type": "http", "scheme": "bearer", "description": "SASL OAUTHBEARER."},
}

_TEXT: Final[Schema] = {"type": "string"}
_NUMBER: Final[Schema] = {"type": "string", "pattern": "^[0-9]+$"}

_HEADERS: Final[Schema] = {
    "type": "object",
    "description": "As the SDK writes them; other writers may leave them out.",
    "required": [MESSAGE_ID, CONTENT_TYPE],
    "properties": {
        MESSAGE_ID: {"type": "string", "minLength": 1},
        CONTENT_TYPE: {"const": "application/json"},
        CORRELATION_ID: _TEXT,
        "traceparent": {"type": "string", "description": "W3C Trace Context, where OpenTelemetry is used."},
        "x-key": {"type": "string", "description": "On NATS, which has no keys."},
    },
}

_DEAD_LETTER_HEADERS: Final[Schema] = {
    "type": "object",
    "description": "Why and from where, beside the original's own headers. Partition and offset on Kafka, stream and "
    "sequence on NATS. Stack trace and message are left out where the letter would be too large.",
    "required": [
        "x-dlq-original-topic", "x-dlq-exception-type", "x-dlq-attempts", "x-dlq-group", "x-dlq-backend",
        "x-dlq-failed-at", "x-dlq-redrive-count",
    ],
    "properties": {
        "x-dlq-original-topic": _TEXT,
        "x-dlq-original-partition": _NUMBER,
        "x-dlq-original-offset": _NUMBER,
        "x-dlq-original-stream": _TEXT,
        "x-dlq-original-sequence": _NUMBER,
        "x-dlq-exception-type": _TEXT,
        "x-dlq-exception-message": _TEXT,
        "x-dlq-stacktrace": _TEXT,
        "x-dlq-attempts": _NUMBER,
        "x-dlq-group": _TEXT,
        "x-dlq-backend": {"enum": ["nats", "kafka", "memory"]},
        "x-dlq-failed-at": {"type": "string", "format": "date-time"},
        "x-dlq-redrive-count": _NUMBER,
        "x-dlq-body-cut": {"type": "string", "description": "How many bytes the body had that did not fit."},
    },
}  # fmt: skip


def asyncapi(config: MessagingConfig) -> dict[str, Any]:
    """The document: a channel for each event's topic and for the dead letters, with what is sent and received."""
    channels = {
        variant.__name__: _channel(config, f"incidents.{tag.lower()}", variant.__name__)
        for tag, variant in VARIANTS.items()
    }
    messages = {variant.__name__: _message(tag, variant) for tag, variant in VARIANTS.items()}
    if config.enable_dlq:
        channels[_DEAD_LETTER] = _channel(config, config.dlq_topic, _DEAD_LETTER)
        messages[_DEAD_LETTER] = _dead_letter()
    components = {"messages": messages, "schemas": definitions(_SCHEMAS)}
    schemes = _schemes(config)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Incident events",
            "version": VERSION,
            "description": (
                f"What {config.source} publishes and consumes with incident-messaging. The version is that of the "
                "envelope's format. Readers pass over fields and variants that they do not know."
            ),
        },
        "defaultContentType": "application/json",
        "servers": dict(_servers(config)),
        "channels": channels,
        "operations": dict(_operations(config, channels)),
        "components": components | ({"securitySchemes": schemes} if schemes else {}),
    }


def _uses(config: MessagingConfig, backend: MessagingBackend) -> bool:
    return config.backend in (backend, MessagingBackend.BOTH)


def _servers(config: MessagingConfig) -> Iterator[tuple[str, Schema]]:
    if _uses(config, MessagingBackend.NATS):
        for number, address in enumerate(config.nats.servers, 1):
            yield f"nats-{number}", _nats_server(config.nats, address)
    if _uses(config, MessagingBackend.KAFKA):
        kafka = config.kafka
        for number, address in enumerate(kafka.bootstrap_servers.split(","), 1):
            protocol = "kafka-secure" if kafka.enable_ssl else "kafka"
            yield f"kafka-{number}", {"host": address, "protocol": protocol} | _security(_kafka_schemes(kafka))


def _nats_server(config: NatsConfig, address: str) -> Schema:
    url = urlsplit(address if "://" in address else f"nats://{address}")
    host = url.netloc if url.port else f"{url.netloc}:{_NATS_PORT}"
    if url.scheme in ("ws", "wss") and not url.port:
        host = url.netloc
    server: Schema = {"host": host, "protocol": "nats"}
    if url.path.strip("/"):
        server["pathname"] = url.path
    how = ["over a WebSocket"] if url.scheme in ("ws", "wss") else []
    how += ["with TLS"] if config.uses_tls else []
    if how:
        server["description"] = f"NATS {' '.join(how)}."
    return server | _security(_nats_schemes(config))


def _security(schemes: dict[str, Schema]) -> Schema:
    return {"security": [{"$ref": f"{_SECURITY}{name}"} for name in schemes]} if schemes else {}


def _schemes(config: MessagingConfig) -> dict[str, Schema]:
    nats = _nats_schemes(config.nats) if _uses(config, MessagingBackend.NATS) else {}
    return nats | (_kafka_schemes(config.kafka) if _uses(config, MessagingBackend.KAFKA) else {})


def _nats_schemes(config: NatsConfig) -> dict[str, Schema]:
    found: dict[str, Schema] = {}
    if config.user:
        found["natsUser"] = {"type": "userPassword"}
    if config.token or config.token_file:
        found["natsToken"] = {"type": "apiKey", "in": "password", "description": "A token."}
    if config.nkey_seed or config.nkey_seed_file or config.credentials or config.credentials_text:
        found["natsKey"] = {"type": "asymmetricEncryption", "description": "An NKey, with a JWT where it is decentral."}
    if config.tls_cert_file:
        found["natsCertificate"] = {"type": "X509"}
    return found


def _kafka_schemes(config: KafkaConfig) -> dict[str, Schema]:
    found: dict[str, Schema] = {}
    if config.enable_sasl:
        found["kafkaSasl"] = _SASL[config.sasl_mechanism]
    if config.ssl_cert_file:
        found["kafkaCertificate"] = {"type": "X509"}
    return found


def _channel(config: MessagingConfig, topic: str, message: str) -> Schema:
    channel: Schema = {
        "address": topics.full_name(config.topic_prefix, topic),
        "messages": {message: {"$ref": f"{_MESSAGES}{message}"}},
    }
    if _uses(config, MessagingBackend.KAFKA):
        made = {"partitions": config.kafka.partitions, "replicas": config.kafka.replication_factor}
        given = {name: number for name, number in made.items() if number is not None}
        channel["bindings"] = {"kafka": {"topic": channel["address"], **given, **_BINDING}}
    return channel


def _message(tag: str, variant: type[IncidentEvent]) -> Schema:
    name = variant.__name__
    payload = example(variant, tag)
    metadata: Schema = {
        "message_id": "6f9619ff-8b86-4d01-b42d-00cf4fc964ff", "correlation_id": None, "timestamp": 1_767_225_600,
        "source": "llm-incident-manager", "version": VERSION, "headers": {},
    }  # fmt: skip
    return {
        "name": name,
        "title": name,
        "contentType": "application/json",
        "headers": _HEADERS,
        "payload": envelope({"$ref": f"{_SCHEMAS}{name}"}, _SCHEMAS),
        "correlationId": {"location": "$message.payload#/metadata/correlation_id"},
        "bindings": {"kafka": {"key": {"type": "string", "description": "The incident's id."}, **_BINDING}},
        "examples": [
            {
                "headers": {MESSAGE_ID: metadata["message_id"], CONTENT_TYPE: "application/json"},
                "payload": {"metadata": metadata, "payload": payload},
            }
        ],
    }


def _dead_letter() -> Schema:
    return {
        "name": _DEAD_LETTER,
        "title": _DEAD_LETTER,
        "summary": "A message that was given up: its bytes, key and headers, and why.",
        "headers": _DEAD_LETTER_HEADERS,
        "payload": {"description": "The original's bytes, whatever they are; cut where x-dlq-body-cut says so."},
    }


def _operations(config: MessagingConfig, channels: dict[str, Schema]) -> Iterator[tuple[str, Schema]]:
    for name, channel in channels.items():
        what = {
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{message}"} for message in channel["messages"]],
        }
        yield f"send{name}", {"action": "send", **what} | _client(config)
        if name != _DEAD_LETTER:  # they are looked into without a group
            yield f"receive{name}", {"action": "receive", **what} | _client(config, channel["address"])


def _client(config: MessagingConfig, address: str | None = None) -> Schema:
    """Who sends or, with an address, receives, as Kafka sees it."""
    if not _uses(config, MessagingBackend.KAFKA):
        return {}
    kafka = config.kafka
    who: Schema = {"clientId": {"type": "string", "const": kafka.client_id}}
    if address is not None:
        group = topics.place_name(kafka.group_id, address, exact=kafka.exact_group_id)
        who["groupId"] = {"type": "string", "const": group, "description": "Of subscriptions that name no group."}
    return {"bindings": {"kafka": {**who, **_BINDING}}}
