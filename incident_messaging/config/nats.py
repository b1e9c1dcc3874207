"""How NATS is reached and used."""

# Annotations are not postponed: each field is checked by its own (values).

from typing import Annotated, ClassVar, Literal

import attrs

from incident_messaging.config.values import (
    Between,
    FilePath,
    Millis,
    Positive,
    Secret,
    Text,
    Where,
    addresses,
    is_address,
    names_unknown_keys,
    needs,
    one_of_two,
    path,
    read_secret,
    read_text,
    together,
    typed,
)
from incident_messaging.errors import ConfigurationError


def _reachable(servers: tuple[str, ...]) -> bool:
    return bool(servers) and all(is_address(server, ("nats", "tls", "ws", "wss")) for server in servers)


_URLS = "a list of nats:// tls:// ws:// wss:// URLs or host:port, without user and password"
Servers = Annotated[tuple[str, ...], Where(_URLS, _reachable)]


def _stream_name(name: str) -> bool:
    return 0 < len(name) <= 255 and name.isprintable() and not set(name) & set(" .*>/\\")


StreamName = Annotated[str, Where("1 to 255 characters without blanks and . * > / \\", _stream_name)]


@names_unknown_keys
@attrs.frozen(kw_only=True, field_transformer=typed)
class NatsConfig:
    """How NATS is reached and used.

    At most one way to log in: ``credentials``, ``user`` and ``password``, ``token`` or ``nkey_seed``. Files of
    secrets and certificates are read anew at each attempt to connect. ``enable_tls``, or one server with ``tls://``
    or ``wss://``, means TLS for all of them.

    Attributes:
        servers: Addresses, as a list or a text by comma: ``nats://`` ``tls://`` ``ws://`` ``wss://``
            URLs, or ``host:port``. Without user and password, which have fields of their own.
        connection_name: The name that the server shows for the connection.
        max_reconnect_attempts: Attempts per server before a lost connection is given up; -1 is never.
        reconnect_delay_ms: Milliseconds between attempts to reconnect, with jitter.
        ping_interval_secs: Seconds between pings; a silent server is noticed after three of them.
        request_timeout_ms: Milliseconds for one request to the server (streams, consumers).
        enable_tls: Whether connections must be encrypted.
        tls_cert_file: The client's certificate (PEM).
        tls_key_file: The key of the client's certificate (PEM).
        tls_ca_file: Certificates that the server's is checked with (PEM); the system's without it.
        tls_first: Whether the TLS handshake comes first, for servers with ``handshake_first``.
        credentials: A ``.creds`` file (JWT and seed), read at each connection.
        credentials_text: What is in a ``.creds`` file, instead of one.
        user: The user's name.
        password: The user's password.
        password_file: A file with the password, read at each connection.
        token: A token.
        token_file: A file with the token, read at each connection.
        nkey_seed: An NKey seed.
        nkey_seed_file: A file with the NKey seed, read at each connection.
        delivery: ``jetstream`` (at least once) or ``core`` (at most once).
        stream: The name for the stream that is made; else the prefix in upper case.
        create_streams: Whether a stream is made where none covers a topic.
        stream_replicas: Copies of each message; else 3 on a cluster of three or more, or 1.
        stream_max_age_secs: Seconds that a stream keeps messages, read or not; 0 is for ever.
        stream_max_bytes: Bytes that a stream takes before it refuses; no bound without it.
        duplicate_window_secs: Seconds within which the same message is stored once.
        ack_wait_ms: Milliseconds after which a message whose process died goes to another one.
    """

    _section: ClassVar[str] = "nats"

    servers: Annotated[
        tuple[str, ...],
        Where("a list of nats:// tls:// ws:// wss:// URLs or host:port, without user and password", _reachable),
    ] = attrs.field(default=("nats://localhost:4222",), converter=addresses)
    connection_name: Text = "llm-incident-manager"
    max_reconnect_attempts: Annotated[int, Between(-1)] = -1
    reconnect_delay_ms: Millis = 1000
    ping_interval_secs: Annotated[float, Between(0.1)] = 5
    request_timeout_ms: Millis = 5000
    enable_tls: bool = False
    tls_cert_file: FilePath | None = attrs.field(default=None, converter=path)
    tls_key_file: FilePath | None = attrs.field(default=None, converter=path)
    tls_ca_file: FilePath | None = attrs.field(default=None, converter=path)
    tls_first: bool = False
    credentials: FilePath | None = attrs.field(default=None, converter=path)
    credentials_text: Secret | None = None
    user: Text | None = None
    password: Secret | None = None
    password_file: FilePath | None = attrs.field(default=None, converter=path)
    token: Secret | None = None
    token_file: FilePath | None = attrs.field(default=None, converter=path)
    nkey_seed: Secret | None = None
    nkey_seed_file: FilePath | None = attrs.field(default=None, converter=path)
    delivery: Literal["jetstream", "core"] = "jetstream"
    stream: StreamName | None = None
    create_streams: bool = True
    stream_replicas: Annotated[int, Between(1, 5)] | None = None
    stream_max_age_secs: Annotated[int, Between(0)] = 604_800
    stream_max_bytes: Positive | None = None
    duplicate_window_secs: Positive = 120
    ack_wait_ms: Millis = 30_000

    def __attrs_post_init__(self) -> None:
        one_of_two(self, "password", "token", "nkey_seed")
        together(self, "tls_cert_file", "tls_key_file")
        self._check_addresses()
        self._check_login()
        if 0 < self.stream_max_age_secs < self.duplicate_window_secs:
            raise ConfigurationError(
                f"nats.duplicate_window_secs must be at most nats.stream_max_age_secs "
                f"({self.stream_max_age_secs}), not {self.duplicate_window_secs}"
            )

    def _check_addresses(self) -> None:
        websocket = {server.startswith(("ws://", "wss://")) for server in self.servers}
        if len(websocket) > 1:
            raise ConfigurationError("nats.servers must be all WebSocket (ws, wss) or none of them")
        if self.uses_tls and any(server.startswith("ws://") for server in self.servers):
            raise ConfigurationError("nats.servers must be wss:// with TLS; ws:// is never encrypted")
        if not self.uses_tls:
            needs(self, "nats.enable_tls", "tls_first", "tls_cert_file", "tls_ca_file")

    def _check_login(self) -> None:
        password = self.password or self.password_file
        if (self.user is None) != (password is None):
            raise ConfigurationError("nats.user and nats.password (or _file) must be given together")
        ways = ("credentials", "credentials_text", "user", "token", "token_file", "nkey_seed", "nkey_seed_file")
        given = [f"nats.{name}" for name in ways if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigurationError(f"{' and '.join(given)} are two ways to log in; only one must be given")

    @property
    def uses_tls(self) -> bool:
        """Whether connections must be encrypted."""
        return self.enable_tls or any(server.startswith(("tls://", "wss://")) for server in self.servers)

    def resolve_password(self) -> str | None:
        """The password as it is now; ``password_file`` is read at each call.

        Raises:
            ConfigurationError: The file cannot be read; its content is not shown.
        """
        return read_secret(self, "password")

    def resolve_token(self) -> str | None:
        """The token as it is now; ``token_file`` is read at each call.

        Raises:
            ConfigurationError: The file cannot be read; its content is not shown.
        """
        return read_secret(self, "token")

    def resolve_nkey_seed(self) -> str | None:
        """The NKey seed as it is now; ``nkey_seed_file`` is read at each call.

        Raises:
            ConfigurationError: The file cannot be read; its content is not shown.
        """
        return read_secret(self, "nkey_seed")

    def resolve_credentials(self) -> str | None:
        """The text of the ``.creds`` file as it is now; ``credentials`` is read at each call.

        Raises:
            ConfigurationError: The file cannot be read; its content is not shown.
        """
        return self.credentials_text if self.credentials is None else read_text(self.credentials, "nats.credentials")
