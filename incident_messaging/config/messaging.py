"""The configuration of a service: frozen classes, checked when they are built.

From code by their constructors, or by `MessagingConfig.from_mapping`, ``from_env``, ``from_file`` and
``load``. Whatever is not allowed raises `ConfigurationError`, which names field, value and what is
allowed. A configuration can be compared, hashed, copied and pickled (with a ``sasl_oauth_token`` and
exception classes that can). It is built without I/O: files are read when they are used.
"""

# Annotations are not postponed: each field is checked by its own (values).

import math
import os
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from os import PathLike
from typing import Annotated, Any, ClassVar, Literal, Self

import attrs

from incident_messaging.config import sources
from incident_messaging.config.kafka import KafkaConfig
from incident_messaging.config.nats import NatsConfig
from incident_messaging.config.values import (
    Between,
    Millis,
    Positive,
    Text,
    Where,
    choice,
    keywords,
    names_unknown_keys,
    typed,
)
from incident_messaging.errors import ConfigurationError, SerializationError
from incident_messaging.topics import full_name

__all__ = ["KafkaConfig", "MessagingBackend", "MessagingConfig", "NatsConfig", "RetryPolicy"]

#: The prefix of environment variables where none is given.
ENV_PREFIX = "INCIDENT_MESSAGING_"


class MessagingBackend(Enum):
    """The brokers a service talks to."""

    NATS = "nats"
    KAFKA = "kafka"
    #: Publishes to NATS and Kafka.
    BOTH = "both"
    #: One broker within the process, for tests.
    MEMORY = "memory"


def _backend(value: MessagingBackend | str) -> MessagingBackend:
    chosen: MessagingBackend = choice(MessagingBackend, value) if isinstance(value, str) else value
    return chosen


def _exceptions(value: Iterable[type[BaseException]]) -> tuple[type[BaseException], ...]:
    return tuple(value) if isinstance(value, Iterable) else value


def _are_exceptions(value: object) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(item, type) and issubclass(item, BaseException) for item in value
    )


Exceptions = Annotated[tuple[type[BaseException], ...], Where("a list of exception classes", _are_exceptions)]


@names_unknown_keys
@attrs.frozen(kw_only=True, field_transformer=typed)
class RetryPolicy:
    """When a message whose handling failed is tried again, and when it is given up. Pure.

    Attributes:
        max_attempts: Attempts until a message goes to the dead letters; the first one counts.
        initial_delay_secs: Seconds between the first and the second attempt.
        multiplier: What each delay is multiplied with for the next one.
        max_delay_secs: The longest delay in seconds.
        jitter: Whether each delay is drawn from its upper half, so that what failed together does not
            come back together.
        no_retry: Exceptions after which a message is given up at once; to be set in code only.
        breaker_share: Share of a subscription's last ``breaker_window`` messages that would go to the dead
            letters, from which on it ends with `ConsumeFailed` (``breaker``) instead: against a bad deploy
            that would empty the topic into them. ``None`` is never.
        breaker_window: How many messages that is.
    """

    _section: ClassVar[str] = "retry"

    max_attempts: Positive = 5
    initial_delay_secs: Annotated[float, Between(0)] = 1.0
    multiplier: Annotated[float, Between(1)] = 2.0
    max_delay_secs: Annotated[float, Between(0)] = 30.0
    jitter: bool = True
    no_retry: Exceptions = attrs.field(default=(SerializationError,), converter=_exceptions)
    breaker_share: Annotated[float, Between(0.01, 1)] | None = None
    breaker_window: Positive = 100

    def delay(self, attempt: int, random: Callable[[], float]) -> float:
        """Seconds to wait after an attempt (1 first) has failed.

        ``random`` gives a number from 0 to 1, as `random.random` does; with ``jitter`` the delay lies
        between 50 and 100 % of the full one.
        """
        try:
            grown = self.initial_delay_secs * float(self.multiplier) ** (attempt - 1)
        except OverflowError:  # a message may be tried for ever
            grown = math.inf if self.initial_delay_secs else 0.0
        full = min(grown, self.max_delay_secs)
        return full * (0.5 + 0.5 * random()) if self.jitter else full

    def retries(self, attempt: int, exc: BaseException) -> bool:
        """Whether another attempt follows the given one (1 first), which ended with ``exc``."""
        return attempt < self.max_attempts and not isinstance(exc, self.no_retry)


def _nats(value: NatsConfig | Mapping[str, Any]) -> NatsConfig:
    return value if isinstance(value, NatsConfig) else NatsConfig(**keywords(value, "nats"))


def _kafka(value: KafkaConfig | Mapping[str, Any]) -> KafkaConfig:
    return value if isinstance(value, KafkaConfig) else KafkaConfig(**keywords(value, "kafka"))


def _retry(value: RetryPolicy | Mapping[str, Any]) -> RetryPolicy:
    return value if isinstance(value, RetryPolicy) else RetryPolicy(**keywords(value, "retry"))


@names_unknown_keys
@attrs.frozen(kw_only=True, field_transformer=typed)
class MessagingConfig:
    """The configuration of a service.

    Attributes:
        enabled: Whether anything is sent; else publishing does nothing and subscribing is refused.
        backend: The broker, or both.
        nats: How NATS is reached; a mapping of its fields is taken too.
        kafka: How Kafka is reached; a mapping of its fields is taken too.
        topic_prefix: What stands before every topic on the brokers; empty adds nothing.
        enable_metrics: Whether the Prometheus instruments are updated.
        enable_dlq: Whether messages that failed for good go to the dead letters; else they are tried
            for ever.
        dlq_topic: The topic of the dead letters, without prefix.
        max_message_size: Bytes of body, key and headers that a message may have.
        source: Who publishes, as the metadata of each message says.
        subscribe_backend: The broker that subscriptions use where there are two.
        publish_require: Where there are two brokers, whether ``all`` of them or ``any`` must have
            acknowledged.
        connect_timeout_ms: Milliseconds for connecting.
        publish_timeout_ms: Milliseconds for a publish until it is acknowledged.
        subscribe_timeout_ms: Milliseconds until a subscription is ready.
        max_in_flight: Messages per broker that may be handed over and not acknowledged.
        max_in_flight_bytes: The same in bytes.
        retry: When a message whose handling failed is tried again; a mapping of its fields is taken too.
        timestamp_format: How envelopes are written: ``unix`` (whole seconds) or ``rfc3339``.
        metrics_topic_limit: Topics that metrics tell apart; the rest is ``other``.
    """

    _section: ClassVar[str] = ""

    enabled: bool = True
    backend: MessagingBackend = attrs.field(default=MessagingBackend.NATS, converter=_backend)
    nats: NatsConfig = attrs.field(factory=NatsConfig, converter=_nats)
    kafka: KafkaConfig = attrs.field(factory=KafkaConfig, converter=_kafka)
    topic_prefix: str = "llm-im"
    enable_metrics: bool = True
    enable_dlq: bool = True
    dlq_topic: str = "dead-letter"
    #: The bounds are librdkafka's for ``message.max.bytes``.
    max_message_size: Annotated[int, Between(1_000, 1_000_000_000)] = 1_048_576
    source: Text = "llm-incident-manager"
    subscribe_backend: Literal[MessagingBackend.NATS, MessagingBackend.KAFKA] = attrs.field(
        default=MessagingBackend.NATS, converter=_backend
    )
    publish_require: Literal["all", "any"] = "all"
    connect_timeout_ms: Millis = 10_000
    publish_timeout_ms: Millis = 10_000
    subscribe_timeout_ms: Millis = 15_000
    max_in_flight: Positive = 10_000
    max_in_flight_bytes: Positive = 64 * 1024 * 1024
    retry: RetryPolicy = attrs.field(factory=RetryPolicy, converter=_retry)
    timestamp_format: Literal["unix", "rfc3339"] = "unix"
    metrics_topic_limit: Annotated[int, Between(0)] = 500

    def __attrs_post_init__(self) -> None:
        if self.topic_prefix:
            _check_topic("topic_prefix", "", self.topic_prefix)
        _check_topic("dlq_topic", self.topic_prefix, self.dlq_topic)

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> Self:
        """Build from a mapping, ``nats``, ``kafka`` and ``retry`` being mappings in it.

        Raises:
            ConfigurationError: A key is unknown (the nearest known one is named), a value not allowed.
        """
        return cls(**keywords(settings, "the configuration"))

    @classmethod
    def from_env(cls, prefix: str = ENV_PREFIX, environ: Mapping[str, str] | None = None) -> Self:
        """Build from environment variables: ``<prefix>TOPIC_PREFIX``, ``<prefix>KAFKA__GROUP_ID``.

        Lists are split by comma; flags are true/false, 1/0, yes/no or on/off; names of choices are taken
        in any case; an empty text is ``None`` where that is allowed; ``extra`` is a JSON object or
        ``name=value`` by comma. ``environ`` is the process's environment unless given.

        Raises:
            ConfigurationError: A variable with the prefix is unknown (the nearest known one is named),
                a text cannot be read, a value is not allowed. What Kubernetes adds for a service whose
                name begins like the prefix (``..._SERVICE_HOST``, ``..._PORT_4222_TCP``) is passed over.
        """
        return cls(**sources.from_environment(cls, prefix, os.environ if environ is None else environ))

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> Self:
        """Build from a ``.toml`` or ``.json`` file, with tables ``nats``, ``kafka`` and ``retry``.

        Raises:
            ConfigurationError: The file cannot be read, a key is unknown, a value not allowed.
        """
        return cls.from_mapping(sources.from_file(path))

    @classmethod
    def load(cls, file: str | PathLike[str] | None = None, env_prefix: str = ENV_PREFIX, **overrides: Any) -> Self:
        """Build from all sources, field by field: overrides before environment before file before defaults.

        Overrides are nested (``nats={"servers": [...]}``) or flat (``nats__servers=[...]``); a whole
        ``NatsConfig`` replaces all of its section. A secret from a later source replaces an earlier one,
        also where one of them is in a file.

        Raises:
            ConfigurationError: As for ``from_file`` and ``from_env``.
        """
        layers = (
            sources.from_file(file) if file is not None else {},
            sources.from_environment(cls, env_prefix, os.environ),
            sources.nested(overrides),
        )
        return cls.from_mapping(sources.merged(*layers))


def _check_topic(field: str, prefix: str, topic: str) -> None:
    try:
        full_name(prefix, topic)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{field}: {exc}") from exc
