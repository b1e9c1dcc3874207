"""How Kafka is reached and used."""

# Annotations are not postponed: each field is checked by its own (values).

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

import attrs

from incident_messaging.config.extra import check_extra, from_files, read_properties, show_extra, without_files
from incident_messaging.config.values import (
    Between,
    FilePath,
    FrozenMapping,
    Millis,
    Positive,
    ReadBy,
    Secret,
    Text,
    Where,
    addresses,
    hidden,
    is_address,
    names_unknown_keys,
    needs,
    one_of_two,
    path,
    read_secret,
    together,
    typed,
)
from incident_messaging.errors import ConfigurationError


def _reachable(servers: str) -> bool:
    return servers != "" and all(is_address(server, ()) for server in servers.split(","))


def _joined(value: str | Iterable[str]) -> str:
    try:
        return ",".join(addresses(value))
    except TypeError:
        return cast(str, value)  # refused by the field's annotation, with its name


def _frozen(value: Mapping[str, str | int | float]) -> Mapping[str, str | int | float]:
    # What is no mapping is refused by check_extra.
    return FrozenMapping(value) if isinstance(value, Mapping) else value


def _supported(_instance: object, _attribute: object, protocol: Any) -> None:
    if protocol == "share":
        raise ConfigurationError(
            "kafka.group_protocol 'share' is planned and not supported in this version; "
            "it must be one of classic, consumer"
        )


def _show_callable(value: object) -> str:
    return "None" if value is None else "<callable>"


#: Called without arguments; a token and the Unix time at which it expires.
TokenSource = Annotated[Callable[[], tuple[str, float]], Where("a callable", callable)]
Properties = Annotated[
    Mapping[str, str | int | float],
    Where("a mapping of librdkafka properties", lambda _properties: True),
    ReadBy(read_properties),
    hidden,
]


@names_unknown_keys
@attrs.frozen(kw_only=True, field_transformer=typed)
class KafkaConfig:
    """How Kafka is reached and used.

    Attributes:
        bootstrap_servers: Addresses ``host:port`` by comma (a list is taken too).
        client_id: The name that the broker's logs and quotas see.
        group_id: The group of subscriptions that name none; on NATS too.
        compression_type: How messages are compressed.
        enable_auto_commit: Whether acknowledgements are committed in the background; else each one
            returns when its commit is confirmed.
        auto_commit_interval_ms: Milliseconds between commits in the background.
        session_timeout_ms: Milliseconds after which a silent member loses its partitions; counts for the
            group protocol ``classic`` only.
        message_timeout_ms: Milliseconds that librdkafka tries to deliver a message.
        retries: How often librdkafka sends a message again within that time.
        enable_ssl: Whether connections are encrypted.
        ssl_ca_file: Certificates that the broker's is checked with (PEM); the system's without it.
        ssl_cert_file: The client's certificate (PEM).
        ssl_key_file: The key of the client's certificate (PEM).
        ssl_key_password: The password of the key.
        ssl_key_password_file: A file with the password of the key. When it or one of the three above changes,
            certificates are read anew.
        enable_sasl: Whether to log in by SASL.
        sasl_mechanism: How to log in.
        sasl_username: The user's name.
        sasl_password: The user's password.
        sasl_password_file: A file with the password; when it changes, the new one is used from then on.
        sasl_oauth_token: For ``OAUTHBEARER``: called without arguments, from any thread, it returns a
            token and the Unix time in seconds at which that expires. To be set in code only.
        create_topics: Whether a topic is made where it is missing.
        partitions: Partitions of topics that are made; else the broker's default.
        replication_factor: Copies of topics that are made; else the broker's default.
        topic_discovery_ms: Milliseconds between looks for new topics while a wildcard is open.
        group_protocol: Kafka's protocol for groups: ``classic`` or ``consumer`` (Kafka 4).
        exact_group_id: Whether a group's name is used on the broker as it is, to share it with other
            services; else the topic is part of it.
        extra: librdkafka properties, passed through. Those that have a field, or break a promise of
            delivery, are refused by name. Each that is a secret has a ``_file`` twin here, too, as
            ``ssl.keystore.password_file``.
    """

    _section: ClassVar[str] = "kafka"

    bootstrap_servers: Annotated[
        str, Where("addresses host:port by comma, without scheme, user and password", _reachable)
    ] = attrs.field(default="localhost:9092", converter=_joined)
    client_id: Text = "llm-incident-manager"
    group_id: Text = "incident-manager-group"
    compression_type: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "snappy"
    enable_auto_commit: bool = True
    auto_commit_interval_ms: Millis = 5000
    session_timeout_ms: Annotated[int, Between(1, 3_600_000)] = 30_000
    message_timeout_ms: Millis = 30_000
    retries: Annotated[int, Between(1, 2_147_483_647)] = 2_147_483_647
    enable_ssl: bool = False
    ssl_ca_file: FilePath | None = attrs.field(default=None, converter=path)
    ssl_cert_file: FilePath | None = attrs.field(default=None, converter=path)
    ssl_key_file: FilePath | None = attrs.field(default=None, converter=path)
    ssl_key_password: Secret | None = None
    ssl_key_password_file: FilePath | None = attrs.field(default=None, converter=path)
    enable_sasl: bool = False
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "PLAIN"
    sasl_username: Text | None = None
    sasl_password: Secret | None = None
    sasl_password_file: FilePath | None = attrs.field(default=None, converter=path)
    sasl_oauth_token: TokenSource | None = attrs.field(default=None, repr=_show_callable)
    create_topics: bool = True
    partitions: Positive | None = None
    replication_factor: Annotated[int, Between(1, 32_767)] | None = None
    topic_discovery_ms: Annotated[int, Between(1, 3_600_000)] = 500
    group_protocol: Literal["classic", "consumer"] = attrs.field(default="classic", validator=_supported)
    exact_group_id: bool = False
    extra: Properties = attrs.field(factory=dict, converter=_frozen, validator=check_extra, repr=show_extra)

    def __attrs_post_init__(self) -> None:
        one_of_two(self, "ssl_key_password", "sasl_password")
        together(self, "ssl_cert_file", "ssl_key_file")
        if not self.enable_ssl:
            needs(self, "kafka.enable_ssl", "ssl_ca_file", "ssl_cert_file")
        if self.ssl_key_file is None:
            needs(self, "kafka.ssl_key_file", "ssl_key_password", "ssl_key_password_file")
        self._check_login()

    def _check_login(self) -> None:
        named = ("sasl_username", "sasl_password", "sasl_password_file")
        if not self.enable_sasl:
            needs(self, "kafka.enable_sasl", *named, "sasl_oauth_token")
        elif self.sasl_mechanism == "OAUTHBEARER":
            needs(self, "another kafka.sasl_mechanism than OAUTHBEARER", *named)
            # librdkafka can fetch tokens itself: sasl.oauthbearer.method=oidc and its sisters.
            if self.sasl_oauth_token is None and not any("oauthbearer" in name for name in self.extra):
                raise ConfigurationError("kafka.sasl_mechanism OAUTHBEARER needs kafka.sasl_oauth_token")
        else:
            needs(self, "kafka.sasl_mechanism OAUTHBEARER", "sasl_oauth_token")
            if self.sasl_username is None or not (self.sasl_password or self.sasl_password_file):
                raise ConfigurationError(
                    f"kafka.sasl_mechanism {self.sasl_mechanism} needs kafka.sasl_username and "
                    f"kafka.sasl_password (or kafka.sasl_password_file)"
                )

    def resolve_sasl_password(self) -> str | None:
        """The password as it is now; ``sasl_password_file`` is read at each call.

        Raises:
            ConfigurationError: The file cannot be read; its content is not shown.
        """
        return read_secret(self, "sasl_password")

    def resolve_ssl_key_password(self) -> str | None:
        """The key's password as it is now; ``ssl_key_password_file`` is read at each call.

        Raises:
            ConfigurationError: The file cannot be read; its content is not shown.
        """
        return read_secret(self, "ssl_key_password")

    def resolve_extra(self) -> dict[str, str | int | float]:
        """``extra`` with its secrets as they are now; each ``_file`` is read at each call.

        Raises:
            ConfigurationError: A file cannot be read; its content is not shown.
        """
        return without_files(self.extra) | from_files(self.extra)
