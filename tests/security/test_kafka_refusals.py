"""What goes wrong on the way into a real Kafka: said in time and in words, with no secret anywhere."""

from __future__ import annotations

import logging
import pickle
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import prometheus_client
import pytest
from certificates import Kit
from files import unreadable
from kafka_secured import ROOT_PASSWORD, Tokens
from waiting import takes

from incident_messaging import ConfigurationError, ConnectionFailed, KafkaConfig, MessagingService
from incident_messaging.backends.kafka import settings

Make = Callable[..., MessagingService]

#: What a call may take; refusals come much sooner, also on a machine that has much to do.
TIMEOUT = 20.0
#: Everything that librdkafka can be made to log.
LOUD = {"debug": "all"}


@attrs.frozen
class Wrong:
    """One thing that is wrong: where, with which fields of ``KafkaConfig``, and what is said of it."""

    listener: str
    kafka: Callable[[Kit, Path, str], dict[str, Any]]
    code: str
    words: str


def case(listener: str, code: str, words: str, **kafka: Any) -> Wrong:
    return Wrong(listener, lambda _kit, _folder, _secret: kafka, code, words)


def client(name: str, **more: str) -> Callable[[Kit, Path, str], dict[str, Any]]:
    """A client's certificate of the kit; ``more`` names where the secret goes."""

    def kafka(kit: Kit, _folder: Path, secret: str) -> dict[str, Any]:
        shown = getattr(kit, name)
        return {"ssl_cert_file": shown.cert_file, "ssl_key_file": shown.key_file, **dict.fromkeys(more, secret)}

    return kafka


def password(**kafka: Any) -> Callable[[Kit, Path, str], dict[str, Any]]:
    return lambda _kit, _folder, secret: {"sasl_password": secret, **kafka}


def files(**named: str) -> Callable[[Kit, Path, str], dict[str, Any]]:
    """Fields that name files of the test's folder."""
    return lambda _kit, folder, _secret: {field: folder / name for field, name in named.items()}


def mixed(kit: Kit, _folder: Path, _secret: str) -> dict[str, Any]:
    return {"ssl_cert_file": kit.client.cert_file, "ssl_key_file": kit.server.key_file}


def token(subject: str, **more: Any) -> Callable[[Kit, Path, str], dict[str, Any]]:
    def kafka(_kit: Kit, _folder: Path, secret: str) -> dict[str, Any]:
        return {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token": Tokens(subject, note=secret, **more)}

    return kafka


PASSWORD_FILE = {"sasl_password": None}
CASES = {
    "wrong-authority": Wrong(
        "TLS", lambda kit, *_: {"ssl_ca_file": kit.other.ca_file}, "tls", "unable to get local issuer certificate"
    ),
    "expired": case("EXPIRED", "tls", "certificate has expired"),
    "wrong-host": case("ELSEWHERE", "tls", "certificate is not valid for '127.0.0.1'"),
    "no-client-certificate": case("MTLS", "tls", "ssl_cert_file"),
    "client-of-another-authority": Wrong("MTLS", client("others_client"), "tls", "does not accept the client's"),
    "client-expired": Wrong("MTLS", client("expired"), "tls", "does not accept the client's"),
    "wrong-key-password": Wrong("MTLS", client("locked", ssl_key_password=""), "invalid", "kafka.ssl_key_password"),
    "no-key-password": Wrong("MTLS", client("locked"), "invalid", "kafka.ssl_key_password"),
    "key-of-another": Wrong("MTLS", mixed, "invalid", "kafka.ssl_key_file is not the key of kafka.ssl_cert_file"),
    "wrong-password": Wrong("SASL_TLS", password(), "unauthorized", "Invalid username or password"),
    "wrong-password-bare": Wrong("SASL_BARE", password(), "unauthorized", "Invalid username or password"),
    "wrong-password-scram": Wrong(
        "SASL_TLS", password(sasl_mechanism="SCRAM-SHA-512"), "unauthorized", "invalid credentials"
    ),
    "unknown-user": Wrong(
        "SASL_BARE", password(sasl_username="nobody", sasl_mechanism="SCRAM-SHA-256"), "unauthorized", "credentials"
    ),
    "expired-token": Wrong("SASL_BARE", token("root", claims={"exp": 1}), "unauthorized", "login failed"),
    "mechanism-that-the-broker-has-not": Wrong(
        "ONLY_PLAIN",
        password(sasl_mechanism="SCRAM-SHA-256"),
        "unauthorized",
        "broker's supported mechanisms: PLAIN",
    ),
    "plain-text-to-tls": case("TLS", "tls", "kafka.enable_ssl", enable_ssl=False, ssl_ca_file=None),
    "login-in-plain-text-to-tls": Wrong(
        "SASL_TLS", password(enable_ssl=False, ssl_ca_file=None), "tls", "kafka.enable_ssl"
    ),
    "tls-to-plain-text": Wrong(
        "PLAINTEXT", lambda kit, *_: {"enable_ssl": True, "ssl_ca_file": kit.ca_file}, "tls", "closed by peer"
    ),
    "no-login": case(
        "SASL_BARE", "unauthorized", "enable_sasl", enable_sasl=False, sasl_username=None, sasl_password=None
    ),
    "login-where-none-is": Wrong(
        "TLS", password(enable_sasl=True, sasl_username="root"), "unauthorized", "this listener takes no login"
    ),
    "no-certificate-in-it": Wrong(
        "MTLS", files(ssl_cert_file="text", ssl_key_file="text"), "invalid", "kafka.ssl_cert_file holds no certificate"
    ),
}


class Told:
    """Everything that a call has said anywhere, to be searched."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.texts: list[str] = []

    def error(self, error: BaseException) -> None:
        copies = (error, pickle.loads(pickle.dumps(error)))
        self.texts += [f"{one} {one!r} {vars(one)!r} {one.args!r}" for one in copies]
        self.texts.append(pickle.dumps(error).decode("latin-1"))
        # With the names of each frame, as what collects errors in production sends them.
        whole = traceback.TracebackException.from_exception(error, capture_locals=True)
        self.texts += [line for line in whole.format() if "/incident_messaging/" in line]
        self.texts += traceback.format_exception(error)

    def about(self, thing: object) -> None:
        self.texts += [repr(thing), str(thing)]

    def all(self) -> str:
        formatter = logging.Formatter()
        logged = [formatter.format(record) for record in self._caplog.records]
        metrics = prometheus_client.generate_latest().decode()
        return "\n".join([*self.texts, *logged, metrics])


@pytest.fixture
def secret() -> str:
    return f"s3cr3t-{uuid.uuid4().hex}"


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Told]:
    with caplog.at_level(logging.DEBUG):
        yield Told(caplog)


@pytest.mark.parametrize("name", CASES)
def test_it_is_said_in_words_and_no_secret_with_it(
    on_kafka: Make, certificates: Kit, tmp_path: Path, secret: str, told: Told, name: str
) -> None:
    wrong = CASES[name]
    (tmp_path / "text").write_text("no certificate")
    service = on_kafka(wrong.listener, extra=LOUD, **wrong.kafka(certificates, tmp_path, secret))
    publishes = list(CASES).index(name) % 2  # both ways meet the same refusals
    with takes(at_most=TIMEOUT / 2), pytest.raises((ConnectionFailed, ConfigurationError)) as caught:
        service.publish("t", {}, timeout=TIMEOUT) if publishes else service.connect(TIMEOUT)
    assert caught.value.code == wrong.code, repr(caught.value)
    assert wrong.words in str(caught.value)
    told.error(caught.value)
    told.about(service)
    told.about(service.config)
    told.about(service.health())
    text = told.all()
    assert "librdkafka" in text or wrong.code == "invalid", "its lines are among what is searched"
    for hidden in (secret, ROOT_PASSWORD, certificates.client.key_file.read_text().splitlines()[1]):
        assert hidden not in text


def test_a_secret_is_nowhere_where_all_is_well(on_kafka: Make, tmp_path: Path, told: Told) -> None:
    services = [
        on_kafka("SASL_TLS", extra=LOUD),
        on_kafka("SASL_BARE", extra=LOUD, sasl_mechanism="SCRAM-SHA-256"),
    ]
    for service in services:
        with service, service.subscribe("well", group="g") as subscription:
            service.publish("well", {"n": 1})
            delivery = subscription.next(TIMEOUT)
            for thing in (service, service.config, service.config.kafka, subscription, delivery, service.health()):
                told.about(thing)
    text = told.all()
    assert "librdkafka" in text
    assert ROOT_PASSWORD not in text


def test_no_token_is_logged(on_kafka: Make, told: Told, secret: str) -> None:
    tokens = Tokens(note=secret)
    with on_kafka("SASL_BARE", sasl_mechanism="OAUTHBEARER", sasl_oauth_token=tokens, extra=LOUD) as service:
        told.about(service.config)
    text = told.all()
    assert "librdkafka" in text
    for token in tokens.given:
        assert token not in text
        assert token.split(".")[1] not in text


@pytest.mark.parametrize("given", ["no pair", ("t0ken", 0.0), ("", 4e9), (b"t0ken", 4e9), None], ids=repr)
def test_what_is_no_token_is_refused_at_once(on_kafka: Make, told: Told, given: Any) -> None:
    service = on_kafka("SASL_BARE", sasl_mechanism="OAUTHBEARER", sasl_oauth_token=lambda: given)
    with pytest.raises(ConfigurationError, match="sasl_oauth_token must return a token") as caught:
        service.connect(TIMEOUT)
    told.error(caught.value)
    assert "t0ken" not in "\n".join(told.texts[:3])


def test_a_source_of_tokens_that_fails_later_is_logged(told: Told) -> None:
    """librdkafka asks on a thread of its own, swallows what is raised, and asks again."""
    tokens = Tokens()
    config = KafkaConfig(enable_sasl=True, sasl_mechanism="OAUTHBEARER", sasl_oauth_token=tokens)
    ask = settings.connection(config)["oauth_cb"]
    assert ask("")[0] == tokens.given[0]
    tokens.fails = OSError("the identity provider is away")
    with pytest.raises(OSError):
        ask("")
    assert "sasl_oauth_token gave no token: OSError: the identity provider is away" in told.all()


FILES = {
    "kafka.ssl_ca_file": ("TLS", lambda _kit, file: {"ssl_ca_file": file}),
    "kafka.ssl_cert_file": ("MTLS", lambda kit, file: {"ssl_cert_file": file, "ssl_key_file": kit.locked.key_file}),
    "kafka.ssl_key_file": ("MTLS", lambda kit, file: {"ssl_cert_file": kit.locked.cert_file, "ssl_key_file": file}),
    "kafka.ssl_key_password_file": (
        "MTLS",
        lambda kit, file: {
            "ssl_cert_file": kit.locked.cert_file,
            "ssl_key_file": kit.locked.key_file,
            "ssl_key_password_file": file,
        },
    ),
    "kafka.sasl_password_file": ("SASL_BARE", lambda _kit, file: {"sasl_password": None, "sasl_password_file": file}),
    "kafka.extra: ssl.keystore.password_file": (
        "SASL_TLS",
        lambda _kit, file: {"extra": {"ssl.keystore.password_file": str(file)}},
    ),
}


@pytest.mark.parametrize("field", FILES)
def test_a_file_that_cannot_be_read_is_named(
    on_kafka: Make, certificates: Kit, tmp_path: Path, told: Told, field: str
) -> None:
    listener, kafka = FILES[field]

    def said(file: Path) -> str:
        service = on_kafka(listener, **kafka(certificates, file))
        with pytest.raises(ConfigurationError) as caught:
            service.connect(TIMEOUT)
        told.error(caught.value)
        return str(caught.value)

    assert f"{field}: cannot read {tmp_path / 'missing'}: No such file" in said(tmp_path / "missing")
    file = tmp_path / "file"
    file.write_text("s3cr3t of the file")
    with unreadable(file):
        assert f"{field}: cannot read {file}: Permission denied" in said(file)
    if "password" in field:
        assert f"{field}: cannot read {tmp_path}: Is a directory" in said(tmp_path)
    text = told.all()
    assert "s3cr3t of the file" not in text
    assert ROOT_PASSWORD not in text


def test_a_file_that_comes_later_is_found_without_a_restart(on_kafka: Make, tmp_path: Path) -> None:
    service = on_kafka("SASL_BARE", sasl_password=None, sasl_password_file=tmp_path / "later")
    for call in (lambda: service.connect(TIMEOUT), lambda: service.publish("later", {})):
        with pytest.raises(ConfigurationError):
            call()
    (tmp_path / "later").write_text(ROOT_PASSWORD)
    service.publish("later", {})
