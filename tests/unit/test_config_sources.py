"""Where settings come from: mappings, environment variables, files, and all of them in order."""

import json
import os

import pytest

from incident_messaging.config import KafkaConfig, MessagingBackend, MessagingConfig, NatsConfig, RetryPolicy
from incident_messaging.errors import ConfigurationError

PREFIX = "INCIDENT_MESSAGING_"


def from_env(**variables):
    return MessagingConfig.from_env(environ={f"{PREFIX}{name}": text for name, text in variables.items()})


def refused(call, *args, **values):
    with pytest.raises(ConfigurationError) as caught:
        call(*args, **values)
    return str(caught.value)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """What the shell of whoever runs the tests has exported is none of theirs."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return write


# --- mappings


def test_from_mapping():
    config = MessagingConfig.from_mapping({"backend": "both", "kafka": {"group_id": "g"}})
    assert config == MessagingConfig(backend=MessagingBackend.BOTH, kafka=KafkaConfig(group_id="g"))


@pytest.mark.parametrize("settings", [None, "x", ["backend"], {1: 2}])
def test_what_is_no_mapping_is_refused(settings):
    assert "the configuration must be a mapping" in refused(MessagingConfig.from_mapping, settings)


# --- environment


def test_every_kind_of_field_is_read_from_the_environment():
    config = from_env(
        ENABLED="off",
        BACKEND="Kafka",
        MAX_IN_FLIGHT="20",
        TOPIC_PREFIX="",
        NATS__SERVERS="nats://a:1, nats://b:2",
        NATS__PING_INTERVAL_SECS="2.5",
        NATS__STREAM="",
        NATS__STREAM_REPLICAS="3",
        NATS__TOKEN="a,b=c ",
        KAFKA__GROUP_ID="g",
        KAFKA__SASL_MECHANISM="scram-sha-512",
        KAFKA__PARTITIONS="",
        KAFKA__EXTRA="linger.ms=5, client.rack = r1",
        RETRY__JITTER="No",
    )
    assert config == MessagingConfig(
        enabled=False,
        backend=MessagingBackend.KAFKA,
        max_in_flight=20,
        topic_prefix="",
        nats=NatsConfig(
            servers=["nats://a:1", "nats://b:2"], ping_interval_secs=2.5, stream_replicas=3, token="a,b=c "
        ),
        kafka=KafkaConfig(group_id="g", sasl_mechanism="SCRAM-SHA-512", extra={"linger.ms": "5", "client.rack": "r1"}),
        retry=RetryPolicy(jitter=False),
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("1", True),
        ("YES", True),
        ("on", True),
        ("False", False),
        ("0", False),
        ("no", False),
        ("OFF", False),
    ],
)
def test_flags(text, value):
    assert from_env(ENABLE_METRICS=text).enable_metrics is value


def test_properties_as_json_keep_their_types():
    assert from_env(KAFKA__EXTRA='{"linger.ms": 5, "log.connection.close": false}').kafka.extra == {
        "linger.ms": 5,
        "log.connection.close": False,
    }
    assert from_env(KAFKA__EXTRA="").kafka.extra == {}


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("ENABLED", "maybe", "True or False"),
        ("ENABLED", "", "True or False"),
        ("MAX_IN_FLIGHT", "many", "a whole number of at least 1"),
        ("RETRY__MULTIPLIER", "x2", "a number of at least 1"),
        ("RETRY__NO_RETRY", "ValueError", "a list of exception classes"),
        ("KAFKA__SASL_OAUTH_TOKEN", "os.system", "a callable"),
        ("KAFKA__EXTRA", "linger.ms", "a mapping of librdkafka properties"),
        ("KAFKA__EXTRA", "{", "a mapping of librdkafka properties"),
    ],
)
def test_a_text_that_cannot_be_read_names_the_variable(name, text, allowed):
    message = refused(from_env, **{name: text})
    assert message.startswith(f"{PREFIX}{name} must be {allowed}")


@pytest.mark.parametrize(
    ("name", "text", "field"),
    [
        ("BACKEND", "rabbit", "backend"),
        ("KAFKA__COMPRESSION_TYPE", "zip", "kafka.compression_type"),
        ("NATS__SERVERS", "", "nats.servers"),
        ("RETRY__MULTIPLIER", "nan", "retry.multiplier"),
        ("SOURCE", "", "source"),
    ],
)
def test_a_value_that_is_not_allowed_names_the_field(name, text, field):
    assert refused(from_env, **{name: text}).startswith(f"{field} must be ")


def test_properties_of_the_environment_are_not_shown():
    assert "s3cret" not in refused(from_env, KAFKA__EXTRA='{"ssl.key.pem": "s3cret"')


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("TOPIC_PREFX", "TOPIC_PREFIX"),
        ("KAFKA_GROUP_ID", "KAFKA__GROUP_ID"),
        ("GROUP_ID", "KAFKA__GROUP_ID"),
        ("NATS__SERVER", "NATS__SERVERS"),
    ],
)
def test_an_unknown_variable_names_the_nearest(name, nearest):
    message = refused(from_env, **{name: "s3cret"})
    assert message == f"{PREFIX}{name} is unknown; the nearest known name is {PREFIX}{nearest}"


def test_other_variables_are_not_looked_at():
    assert MessagingConfig.from_env(environ={"PATH": "/bin", "INCIDENT": "x"}) == MessagingConfig()


@pytest.mark.parametrize(
    "name",
    ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "NATS_PORT_4222_TCP", "NATS_PORT_4222_TCP_ADDR"],
)
def test_variables_that_kubernetes_adds_for_a_service_are_passed_over(name):
    assert from_env(**{name: "tcp://10.0.0.1:4222"}) == MessagingConfig()


def test_another_prefix():
    config = MessagingConfig.from_env("APP_MQ_", environ={"APP_MQ_KAFKA__GROUP_ID": "g", f"{PREFIX}SOURCE": "x"})
    assert config == MessagingConfig(kafka={"group_id": "g"})


def test_the_environment_of_the_process_is_the_default(monkeypatch):
    monkeypatch.setenv(f"{PREFIX}SOURCE", "from the process")
    assert MessagingConfig.from_env().source == "from the process"
    assert MessagingConfig().source == "llm-incident-manager"


# --- files


def test_a_toml_file(write):
    file = write("config.toml", 'backend = "both"\n[nats]\nservers = ["nats://a:1"]\n[kafka.extra]\n"linger.ms" = 5\n')
    assert MessagingConfig.from_file(file) == MessagingConfig(
        backend="both", nats={"servers": ["nats://a:1"]}, kafka={"extra": {"linger.ms": 5}}
    )


def test_a_json_file(write):
    file = write("config.JSON", json.dumps({"retry": {"max_attempts": 2}, "topic_prefix": "é"[:0]}))
    assert MessagingConfig.from_file(str(file)) == MessagingConfig(retry={"max_attempts": 2}, topic_prefix="")


def test_a_file_says_types_itself(write):
    assert "max_in_flight must be a whole number" in refused(
        MessagingConfig.from_file, write("config.json", '{"max_in_flight": "20"}')
    )


@pytest.mark.parametrize(
    ("name", "text", "trouble"),
    [
        ("config.yaml", "backend: nats", "must end in one of .toml, .json"),
        ("config.toml", 'nats = { password = "s3cret"', "is not valid toml"),
        ("config.json", '{"nats": {"password": "s3cret"', "is not valid json"),
        ("config.json", "[]", "must hold a mapping, not list"),
    ],
)
def test_a_bad_file_is_named(write, name, text, trouble):
    file = write(name, text)
    message = refused(MessagingConfig.from_file, file)
    assert str(file) in message
    assert trouble in message
    assert "s3cret" not in message


def test_a_missing_file_is_named(tmp_path):
    assert "none.toml cannot be read: No such file" in refused(MessagingConfig.from_file, tmp_path / "none.toml")


def test_an_unknown_key_of_a_file_names_the_nearest(write):
    file = write("config.toml", "[kafka]\ngrup_id = 'g'\n")
    assert refused(MessagingConfig.from_file, file).endswith("kafka.group_id")


# --- all of them


def test_overrides_come_before_the_environment_before_the_file_before_defaults(write, monkeypatch):
    file = write("config.toml", "source = 'file'\n[kafka]\nclient_id = 'file'\ngroup_id = 'file'\nretries = 7\n")
    monkeypatch.setenv(f"{PREFIX}KAFKA__CLIENT_ID", "environment")
    monkeypatch.setenv(f"{PREFIX}KAFKA__GROUP_ID", "environment")
    config = MessagingConfig.load(file, kafka__group_id="override", nats={"servers": ["a:1"]}, topic_prefix="p")
    assert config == MessagingConfig(
        source="file",
        topic_prefix="p",
        kafka=KafkaConfig(client_id="environment", group_id="override", retries=7),
        nats=NatsConfig(servers=["a:1"]),
    )


def test_load_without_sources_is_the_defaults():
    assert MessagingConfig.load(env_prefix="NOBODY_SETS_THIS_") == MessagingConfig()


def test_a_whole_section_replaces_what_was_below(write):
    file = write("config.toml", "[nats]\nconnection_name = 'file'\nuser = 'u'\npassword = 'p'\n")
    assert MessagingConfig.load(file, nats=NatsConfig(token="t")).nats == NatsConfig(token="t")
    assert MessagingConfig.load(nats=NatsConfig(token="t"), nats__stream="S").nats == NatsConfig(token="t", stream="S")


@pytest.mark.parametrize(("below", "above"), [("password", "password_file"), ("password_file", "password")])
def test_a_secret_replaces_the_earlier_one_whichever_field_gave_it(write, below, above):
    file = write("config.toml", f"[nats]\nuser = 'u'\n{below} = 'one'\n")
    assert MessagingConfig.load(file, nats={above: "two"}).nats == NatsConfig(user="u", **{above: "two"})


def test_one_source_that_gives_a_secret_twice_is_refused():
    assert "only one" in refused(MessagingConfig.load, nats={"token": "a", "token_file": "b"})


@pytest.mark.parametrize(
    ("key", "nearest"), [("natz__servers", "nats"), ("nats__server", "nats.servers"), ("bakend", "backend")]
)
def test_an_unknown_override_names_the_nearest(key, nearest):
    assert refused(MessagingConfig.load, **{key: "x"}).endswith(f"name is {nearest}")
