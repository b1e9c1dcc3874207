"""The configuration's classes: defaults, what they take, what they refuse and how they say it."""

import copy
import inspect
import math
import pickle
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from incident_messaging.config import (
    KafkaConfig,
    MessagingBackend,
    MessagingConfig,
    NatsConfig,
    RetryPolicy,
)
from incident_messaging.errors import ConfigurationError, SerializationError

CLASSES = (MessagingConfig, NatsConfig, KafkaConfig, RetryPolicy)


def refused(build, **values):
    with pytest.raises(ConfigurationError) as caught:
        build(**values)
    assert caught.value.code == "invalid"
    return str(caught.value)


def test_the_defaults_are_those_of_the_design():
    config = MessagingConfig()
    assert attrs.asdict(config, filter=lambda field, _: field.name not in ("nats", "kafka", "retry")) == {
        "enabled": True,
        "backend": MessagingBackend.NATS,
        "topic_prefix": "llm-im",
        "enable_metrics": True,
        "enable_dlq": True,
        "dlq_topic": "dead-letter",
        "max_message_size": 1_048_576,
        "source": "llm-incident-manager",
        "subscribe_backend": MessagingBackend.NATS,
        "publish_require": "all",
        "connect_timeout_ms": 10_000,
        "publish_timeout_ms": 10_000,
        "subscribe_timeout_ms": 15_000,
        "max_in_flight": 10_000,
        "max_in_flight_bytes": 67_108_864,
        "timestamp_format": "unix",
        "metrics_topic_limit": 500,
    }
    assert (config.nats, config.kafka, config.retry) == (NatsConfig(), KafkaConfig(), RetryPolicy())


def test_the_defaults_of_nats_are_those_of_the_design():
    assert attrs.asdict(NatsConfig(), filter=lambda _, value: value is not None) == {
        "servers": ("nats://localhost:4222",),
        "connection_name": "llm-incident-manager",
        "max_reconnect_attempts": -1,
        "reconnect_delay_ms": 1000,
        "ping_interval_secs": 5,
        "request_timeout_ms": 5000,
        "enable_tls": False,
        "tls_first": False,
        "delivery": "jetstream",
        "create_streams": True,
        "stream_max_age_secs": 604_800,
        "duplicate_window_secs": 120,
        "ack_wait_ms": 30_000,
    }


def test_the_defaults_of_kafka_are_those_of_the_design():
    assert attrs.asdict(KafkaConfig(), filter=lambda _, value: value is not None) == {
        "bootstrap_servers": "localhost:9092",
        "client_id": "llm-incident-manager",
        "group_id": "incident-manager-group",
        "compression_type": "snappy",
        "enable_auto_commit": True,
        "auto_commit_interval_ms": 5000,
        "session_timeout_ms": 30_000,
        "message_timeout_ms": 30_000,
        "retries": 2_147_483_647,
        "enable_ssl": False,
        "enable_sasl": False,
        "sasl_mechanism": "PLAIN",
        "create_topics": True,
        "topic_discovery_ms": 500,
        "group_protocol": "classic",
        "exact_group_id": False,
        "extra": {},
    }


def test_the_four_backends_have_their_names_as_values():
    assert {backend.name: backend.value for backend in MessagingBackend} == {
        "NATS": "nats",
        "KAFKA": "kafka",
        "BOTH": "both",
        "MEMORY": "memory",
    }


@pytest.mark.parametrize("cls", CLASSES)
def test_a_configuration_is_frozen_and_takes_keywords_only(cls):
    field = attrs.fields(cls)[0].name
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(cls(), field, None)
    with pytest.raises(TypeError):
        cls(True)


@pytest.mark.parametrize("cls", CLASSES)
def test_help_shows_plain_types(cls):
    assert "Annotated" not in str(inspect.signature(cls))


def test_a_configuration_pickles_copies_compares_and_hashes():
    config = MessagingConfig(
        kafka={"extra": {"linger.ms": 5}}, nats={"token": "t0ken"}, retry={"no_retry": [ValueError]}
    )
    for twin in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), attrs.evolve(config)):
        assert twin == config
        assert hash(twin) == hash(config)
    assert attrs.evolve(config, source="other") != config


def test_lists_and_mappings_of_the_user_are_copied():
    servers, extra = ["nats://a:4222"], {"linger.ms": 5}
    nats, kafka = NatsConfig(servers=servers), KafkaConfig(extra=extra)
    servers.append("nats://b:4222")
    extra["linger.ms"] = 6
    assert nats.servers == ("nats://a:4222",)
    assert kafka.extra == {"linger.ms": 5}
    with pytest.raises(TypeError):
        kafka.extra["linger.ms"] = 7


@pytest.mark.parametrize("backend", ["kafka", "KAFKA", "Kafka", MessagingBackend.KAFKA])
def test_a_backend_may_be_given_as_text(backend):
    config = MessagingConfig(backend=backend, subscribe_backend=backend)
    assert config.backend is config.subscribe_backend is MessagingBackend.KAFKA


def test_sections_may_be_given_as_mappings():
    config = MessagingConfig(
        nats={"servers": "a:1, b:2"}, kafka={"group_id": "g"}, retry={"max_attempts": 2, "no_retry": [OSError]}
    )
    assert config.nats == NatsConfig(servers=("a:1", "b:2"))
    assert config.kafka == KafkaConfig(group_id="g")
    assert config.retry == RetryPolicy(max_attempts=2, no_retry=(OSError,))


def test_paths_may_be_given_as_path_objects():
    config = NatsConfig(tls_ca_file=Path("/etc/ca.pem"), enable_tls=True)
    assert config.tls_ca_file == "/etc/ca.pem"


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("backend", "rabbit", "nats, kafka, both, memory"),
        ("subscribe_backend", "both", "nats, kafka"),
        ("publish_require", "most", "all, any"),
        ("timestamp_format", "iso", "unix, rfc3339"),
        ("enabled", 1, "True or False"),
        ("enable_dlq", "true", "True or False"),
        ("max_in_flight", 0, "at least 1"),
        ("max_in_flight", True, "whole number"),
        ("max_in_flight", 1.5, "whole number"),
        ("max_in_flight_bytes", "1", "whole number"),
        ("max_message_size", 999, "from 1_000 to 1_000_000_000"),
        ("connect_timeout_ms", 0, "from 1 to"),
        ("publish_timeout_ms", 2**31, "from 1 to 2_147_483_647"),
        ("subscribe_timeout_ms", None, "whole number"),
        ("metrics_topic_limit", -1, "at least 0"),
        ("source", "", "text on one line"),
        ("source", "a\nb", "text on one line"),
        ("source", "\ud800", "text on one line"),
        ("topic_prefix", None, "text"),
        ("topic_prefix", "a..b", "levels"),
        ("topic_prefix", "a.*", "levels"),
        ("dlq_topic", "", "levels"),
        ("dlq_topic", "dead letter", "levels"),
        ("dlq_topic", "d" * 243, "249"),
        ("nats", "nats://localhost", "mapping"),
        ("kafka", None, "mapping"),
        ("retry", {1: 2}, "mapping of names"),
    ],
)
def test_a_bad_value_is_refused_naming_field_and_what_is_allowed(field, value, allowed):
    text = refused(MessagingConfig, **{field: value})
    assert text.startswith(field)
    assert allowed in text


@pytest.mark.parametrize("value", ["rabbit", 17, "x" * 1000])
def test_a_bad_value_is_shown_but_not_at_any_length(value):
    text = refused(MessagingConfig, publish_require=value)
    assert repr(value)[:100] in text
    assert len(text) < 300


def test_an_empty_prefix_is_allowed():
    assert MessagingConfig(topic_prefix="").topic_prefix == ""


@pytest.mark.parametrize(
    ("cls", "key", "nearest"),
    [
        (MessagingConfig, "toppic_prefix", "topic_prefix"),
        (MessagingConfig, "group_id", "kafka.group_id"),
        (NatsConfig, "server", "nats.servers"),
        (KafkaConfig, "grup_id", "kafka.group_id"),
        (RetryPolicy, "attempts", "retry.max_attempts"),
    ],
)
def test_an_unknown_key_names_the_nearest(cls, key, nearest):
    text = refused(cls, **{key: "s3cret"})
    assert key in text
    assert text.endswith(nearest)
    assert "s3cret" not in text


def test_an_unknown_key_in_a_section_and_in_evolve_is_told_too():
    assert "kafka.grup_id" in refused(MessagingConfig, kafka={"grup_id": "x"})
    assert "nats.user" in refused(lambda **values: attrs.evolve(NatsConfig(), **values), usr="x")


# --- secrets


SECRETS = [
    (NatsConfig, "password", {"user": "u"}),
    (NatsConfig, "token", {}),
    (KafkaConfig, "sasl_password", {"enable_sasl": True, "sasl_username": "u"}),
    (KafkaConfig, "ssl_key_password", {"enable_ssl": True, "ssl_cert_file": "c", "ssl_key_file": "k"}),
]


@pytest.mark.parametrize(("cls", "secret", "rest"), SECRETS)
def test_a_secret_is_never_shown(cls, secret, rest):
    config = cls(**rest, **{secret: "s3cret"})
    assert f"{secret}='***'" in repr(config)
    assert "s3cret" not in repr(config)
    assert f"{secret}=None" in repr(cls())


@pytest.mark.parametrize(("cls", "secret", "rest"), SECRETS)
def test_a_bad_secret_is_refused_without_showing_it(cls, secret, rest):
    text = refused(cls, **rest, **{secret: ["s3cret"]})
    assert secret in text
    assert "s3cret" not in text


@pytest.mark.parametrize(("cls", "secret", "rest"), SECRETS)
def test_a_secret_and_its_file_are_one_too_many(cls, secret, rest):
    text = refused(cls, **rest, **{secret: "s3cret", f"{secret}_file": "/run/secret"})
    assert f"{secret}_file" in text
    assert "s3cret" not in text


@pytest.mark.parametrize(("cls", "secret", "rest"), SECRETS)
def test_a_secret_is_resolved_as_it_is_now(cls, secret, rest, tmp_path):
    file = tmp_path / "secret"
    config = cls(**rest, **{f"{secret}_file": file})
    resolve = getattr(config, f"resolve_{secret}")

    assert f"{secret}_file: cannot read {file}" in refused(resolve)
    for content, value in ((b"first\n", "first"), ("größe \n\n".encode(), "größe \n"), (b"crlf\r\n", "crlf")):
        file.write_bytes(content)
        assert resolve() == value
    for content in (b"", b"\n", b"s3cret\xff"):
        file.write_bytes(content)
        assert "s3cret" not in refused(resolve)

    assert getattr(cls(**rest, **{secret: "plain"}), f"resolve_{secret}")() == "plain"
    assert getattr(cls(), f"resolve_{secret}")() is None


# --- NATS


@pytest.mark.parametrize(
    "servers",
    [
        ["nats://localhost:4222"],
        ("tls://a:1", "nats://b"),
        ["wss://a:443/path", "wss://b"],
        ["localhost"],
        ["[::1]:4222", "nats://[::1]:4222"],
    ],
)
def test_addresses_of_nats(servers):
    assert NatsConfig(servers=servers).servers == tuple(servers)


def test_a_text_is_a_list_by_comma():
    assert NatsConfig(servers="nats://a:1, b:2,").servers == ("nats://a:1", "b:2")


@pytest.mark.parametrize(
    "servers",
    [
        [],
        "",
        [4222],
        4222,
        ["http://a:1"],
        ["nats://"],
        ["a:port"],
        ["a:99999"],
        ["a:0"],
        ["a b:1"],
        ["nats://a:1/path"],
        ["nats://a:1?x=y"],
        ["[::1"],
        ["a:1", ""],
    ],
)
def test_bad_addresses_of_nats(servers):
    assert refused(NatsConfig, servers=servers).startswith("nats.servers must be a list of nats://")


@pytest.mark.parametrize("cls_field", [(NatsConfig, "servers"), (KafkaConfig, "bootstrap_servers")])
def test_a_password_in_an_address_is_refused_without_showing_it(cls_field):
    cls, field = cls_field
    text = refused(cls, **{field: "nats://user:s3cret@host:4222"})
    assert "without" in text
    assert "s3cret" not in text


def test_websocket_and_plain_addresses_do_not_mix():
    assert "WebSocket" in refused(NatsConfig, servers="ws://a:1,nats://b:1")


@pytest.mark.parametrize("values", [{"servers": "ws://a:1", "enable_tls": True}, {"servers": "wss://a:1,ws://b:1"}])
def test_an_unencrypted_websocket_is_refused_with_tls(values):
    assert "never encrypted" in refused(NatsConfig, **values)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"user": "u"}, ("nats.user", "nats.password")),
        ({"password": "p"}, ("nats.user", "nats.password")),
        ({"token": "t", "credentials": "c"}, ("nats.credentials", "nats.token")),
        ({"user": "u", "password_file": "f", "nkey_seed_file": "s"}, ("nats.user", "nats.nkey_seed_file")),
        ({"tls_cert_file": "c", "enable_tls": True}, ("nats.tls_cert_file", "nats.tls_key_file")),
        ({"tls_ca_file": "c"}, ("nats.tls_ca_file", "nats.enable_tls")),
        ({"tls_first": True}, ("nats.tls_first", "nats.enable_tls")),
        ({"stream_max_age_secs": 60}, ("nats.duplicate_window_secs", "nats.stream_max_age_secs")),
        ({"stream": "a.b"}, ("nats.stream", "without blanks")),
        ({"delivery": "both"}, ("nats.delivery", "jetstream, core")),
        ({"stream_replicas": 6}, ("nats.stream_replicas", "from 1 to 5")),
        ({"max_reconnect_attempts": -2}, ("nats.max_reconnect_attempts", "at least -1")),
        ({"ping_interval_secs": math.nan}, ("nats.ping_interval_secs", "a number")),
        ({"credentials": ""}, ("nats.credentials", "path")),
    ],
)
def test_what_nats_refuses(values, names):
    text = refused(NatsConfig, **values)
    assert all(name in text for name in names)


def test_what_nats_takes():
    assert NatsConfig(user="u", password="p").resolve_password() == "p"
    assert NatsConfig(stream_max_age_secs=0).stream_max_age_secs == 0
    assert NatsConfig(servers="tls://a:1", tls_ca_file="ca", tls_first=True).uses_tls
    assert NatsConfig(enable_tls=True).uses_tls
    assert not NatsConfig().uses_tls


# --- Kafka


def test_addresses_of_kafka():
    assert KafkaConfig(bootstrap_servers="a:1, b").bootstrap_servers == "a:1,b"
    assert KafkaConfig(bootstrap_servers=["a:1", "b:2"]).bootstrap_servers == "a:1,b:2"


@pytest.mark.parametrize("servers", ["", [], "kafka://a:1", "a:x", 9092, [9092]])
def test_bad_addresses_of_kafka(servers):
    assert refused(KafkaConfig, bootstrap_servers=servers).startswith("kafka.bootstrap_servers must be")


def test_share_groups_are_planned():
    text = refused(KafkaConfig, group_protocol="share")
    assert "kafka.group_protocol" in text
    assert "planned" in text
    assert "not supported in this version" in text
    assert KafkaConfig(group_protocol="consumer").group_protocol == "consumer"


SASL = {"enable_sasl": True, "sasl_username": "u", "sasl_password": "p"}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"compression_type": "zip"}, ("kafka.compression_type", "'zip'", "none, gzip, snappy, lz4, zstd")),
        ({"session_timeout_ms": 3_600_001}, ("kafka.session_timeout_ms", "3_600_000")),
        ({"retries": 0}, ("kafka.retries", "from 1")),
        ({"partitions": 0}, ("kafka.partitions", "at least 1, or None")),
        ({"group_protocol": "other"}, ("kafka.group_protocol", "classic, consumer")),
        ({"ssl_key_file": "k", "enable_ssl": True}, ("kafka.ssl_cert_file", "kafka.ssl_key_file")),
        ({"ssl_ca_file": "c"}, ("kafka.ssl_ca_file", "kafka.enable_ssl")),
        ({"ssl_key_password": "p", "enable_ssl": True}, ("kafka.ssl_key_password", "kafka.ssl_key_file")),
        ({"enable_sasl": True}, ("kafka.sasl_username", "kafka.sasl_password_file")),
        ({"sasl_username": "u"}, ("kafka.sasl_username", "kafka.enable_sasl")),
        ({"enable_sasl": True, "sasl_mechanism": "OAUTHBEARER"}, ("OAUTHBEARER", "kafka.sasl_oauth_token")),
        ({**SASL, "sasl_mechanism": "OAUTHBEARER"}, ("kafka.sasl_username", "OAUTHBEARER")),
        ({**SASL, "sasl_oauth_token": lambda: ("t", 0.0)}, ("kafka.sasl_oauth_token", "OAUTHBEARER")),
        ({"sasl_mechanism": "GSSAPI"}, ("PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER",)),
        ({"enable_sasl": True, "sasl_oauth_token": "t0ken"}, ("kafka.sasl_oauth_token", "callable")),
    ],
)
def test_what_kafka_refuses(values, names):
    text = refused(KafkaConfig, **values)
    assert all(name in text for name in names)


def test_what_kafka_takes():
    assert KafkaConfig(**SASL, sasl_mechanism="SCRAM-SHA-512").resolve_sasl_password() == "p"
    token = KafkaConfig(enable_sasl=True, sasl_mechanism="OAUTHBEARER", sasl_oauth_token=lambda: ("t", 0.0))
    assert "sasl_oauth_token=<callable>" in repr(token)
    KafkaConfig(
        enable_sasl=True, sasl_mechanism="OAUTHBEARER", extra={"sasl.oauthbearer.method": "oidc"}
    )  # librdkafka fetches the token


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("acks", "1"),
        ("request.required.acks", 1),
        ("enable.idempotence", False),
        ("group.id", "g"),
        ("auto.offset.reset", "latest"),
        ("enable.auto.commit", True),
        ("enable.auto.offset.store", True),
        ("group.protocol", "consumer"),
        ("bootstrap.servers", "a:1"),
        ("message.max.bytes", 10),
        ("delivery.report.only.error", True),
        ("partition.assignment.strategy", "roundrobin"),
        ("partitioner", "random"),
        ("ssl.endpoint.identification.algorithm", "none"),
        ("ssl.endpoint.identification.algorithm", "NONE"),
        ("ssl.endpoint.identification.algorithm", " none"),
        ("transactional.id", "t"),
        ("topic.blacklist", "x"),
        ("group.instance.id", "i"),
        ("sasl.password", "s3cret"),
        ("error_cb", print),
        ("on_delivery", print),
        ("logger", "x"),
        ("default.topic.config", {}),
        ("linger.ms", None),
        ("linger.ms", [1]),
        (5, 1),
        ("", 1),
        ("sasl.password_file", "/run/secret"),
        ("ssl.ca.location_file", "/run/ca"),
        ("client.rack_file", "/run/rack"),
        ("ssl.keystore.password_file", 1),
        ("ssl.keystore.password_file", ""),
    ],
)
def test_properties_that_would_break_a_promise_are_refused_by_name(name, value):
    text = refused(KafkaConfig, extra={"linger.ms": 5, name: value})
    assert text.startswith(f"kafka.extra: {name!r} is refused: ")
    assert "s3cret" not in text


def test_a_property_with_a_field_names_the_field():
    assert refused(KafkaConfig, extra={"client.id": "x"}).endswith("set kafka.client_id instead")
    assert refused(KafkaConfig, extra={"ssl.key.password": "x"}).endswith("set kafka.ssl_key_password instead")
    in_file = refused(KafkaConfig, extra={"ssl.key.password_file": "x"})
    assert in_file.endswith("set kafka.ssl_key_password_file instead")
    assert refused(KafkaConfig, extra={"ssl.key.location_file": "x"}).endswith("set kafka.ssl_key_file instead")


def test_what_is_no_map_of_properties_is_refused():
    assert "kafka.extra must be a mapping" in refused(KafkaConfig, extra="linger.ms=5")


def test_other_properties_pass_through_as_they_are():
    extra = {
        "linger.ms": 5,
        "isolation.level": "read_committed",
        "socket.keepalive.enable": True,
        "partitioner": "murmur2",
    }
    assert dict(KafkaConfig(extra=extra).extra) == extra


def test_secret_properties_are_masked():
    shown = repr(
        KafkaConfig(
            extra={
                "ssl.key.pem": "s3cret",
                "sasl.oauthbearer.client.secret": "s3cret",
                "sasl.jaas.config": "s3cret",
                "access.token": "s3cret",
                "sasl.oauthbearer.token.endpoint.url": "https://token",
                "linger.ms": 5,
            }
        )
    )
    assert "s3cret" not in shown
    assert "'sasl.oauthbearer.token.endpoint.url': 'https://token'" in shown
    assert "'linger.ms': 5" in shown


def test_secret_properties_come_from_files_too(tmp_path):
    file = tmp_path / "password"
    config = KafkaConfig(extra={"ssl.keystore.password_file": str(file), "linger.ms": 5})
    assert str(file) in repr(config)
    for password in ("s3cret", "changed"):
        file.write_text(f"{password}\n")
        assert config.resolve_extra() == {"ssl.keystore.password": password, "linger.ms": 5}
    both = {"ssl.key.pem": "s3cret", "ssl.key.pem_file": str(file)}
    assert "only one of them must be" in refused(KafkaConfig, extra=both)


# --- retrying


def test_the_delay_grows_to_its_maximum():
    policy = RetryPolicy(jitter=False)
    assert [policy.delay(attempt, lambda: 0.0) for attempt in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


def test_jitter_draws_from_the_upper_half():
    policy = RetryPolicy(initial_delay_secs=8)
    assert [policy.delay(1, lambda share=share: share) for share in (0.0, 0.5, 1.0)] == [4, 6, 8]


def test_a_message_that_is_tried_for_ever_waits_the_maximum():
    assert RetryPolicy(jitter=False, multiplier=2).delay(1_000_000, lambda: 0.0) == 30


def test_no_delay_stays_none():
    assert RetryPolicy(initial_delay_secs=0).delay(100_000, lambda: 1.0) == 0


def test_the_first_attempt_counts():
    policy = RetryPolicy(max_attempts=2)
    assert policy.retries(1, ValueError())
    assert not policy.retries(2, ValueError())
    assert not RetryPolicy(max_attempts=1).retries(1, ValueError())


def test_some_exceptions_are_not_retried():
    assert not RetryPolicy().retries(1, SerializationError("bad bytes"))
    policy = RetryPolicy(no_retry=[LookupError])
    assert not policy.retries(1, KeyError())
    assert policy.retries(1, SerializationError("bad bytes"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", 0),
        ("initial_delay_secs", -1),
        ("initial_delay_secs", math.inf),
        ("multiplier", 0.5),
        ("max_delay_secs", "30"),
        ("jitter", 1),
        ("no_retry", ValueError),
        ("no_retry", ["ValueError"]),
        ("no_retry", [int]),
    ],
)
def test_what_a_policy_refuses(field, value):
    assert refused(RetryPolicy, **{field: value}).startswith(f"retry.{field} must be ")


def test_importing_the_configuration_loads_no_client_library():
    program = """if True:
        import sys
        import incident_messaging.config
        print(sorted({"asyncio", "nats", "confluent_kafka"} & set(sys.modules)))
    """
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
