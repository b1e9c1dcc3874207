"""Every way to be let in by a NATS server: certificates, passwords, tokens, keys, signed users."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from certificates import Kit
from files import write
from nats_accounts import Key, Operator
from nats_secured import PATIENCE, Make, tls, user
from waiting import until

from incident_messaging import ConnectionFailed, MessagingConfig, MessagingService
from incident_messaging.brokers.ports import free_port

KEY = Key.of_user()
OPERATOR = Operator()

#: Name: what the server is given, and the secret with the fields that it can be given by, itself and in a file.
WAYS: dict[str, tuple[str, str, tuple[str, str], dict[str, str]]] = {
    "password": (user('user: "app", password: "right"'), "right", ("password", "password_file"), {"user": "app"}),
    "token": ('authorization { token: "t0ken" }', "t0ken", ("token", "token_file"), {}),
    "nkey": (user(f"nkey: {KEY.public}"), KEY.seed, ("nkey_seed", "nkey_seed_file"), {}),
    "creds": (OPERATOR.config, OPERATOR.credentials(), ("credentials_text", "credentials"), {}),
}


def works(service: MessagingService) -> None:
    """Both ways: published, acknowledged, consumed."""
    service.publish("orders", {"n": 1}, timeout=PATIENCE)
    delivery = service.consume_one("orders", timeout=PATIENCE)
    assert delivery is not None
    assert delivery.payload == {"n": 1}


@pytest.mark.parametrize("way", WAYS)
def test_a_secret_from_the_environment_or_from_a_file(
    on_nats: Make, nats_server_factory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    config, secret, (itself, in_file), rest = WAYS[way]
    server = nats_server_factory(config=config)
    with pytest.raises(ConnectionFailed) as refused:
        on_nats(server).connect(PATIENCE)
    assert refused.value.code == "unauthorized"
    works(on_nats(server, **rest, **{in_file: write(tmp_path / "secret", f"{secret}\n")}))
    fields = {**rest, itself: secret, "servers": server.url}
    for name, value in fields.items():
        monkeypatch.setenv(f"INCIDENT_MESSAGING_NATS__{name.upper()}", value)
    monkeypatch.setenv("INCIDENT_MESSAGING_TOPIC_PREFIX", "environment")
    with MessagingService(MessagingConfig.load()) as service:
        works(service)
    monkeypatch.delenv(f"INCIDENT_MESSAGING_NATS__{itself.upper()}")
    monkeypatch.setenv(f"INCIDENT_MESSAGING_NATS__{in_file.upper()}", os.fspath(tmp_path / "secret"))
    with MessagingService(MessagingConfig.load(topic_prefix="file")) as service:
        works(service)


@pytest.mark.parametrize("first", [False, True], ids=["info-first", "tls-first"])
@pytest.mark.parametrize("mutual", [False, True], ids=["server", "mutual"])
def test_tls(on_nats: Make, nats_server_factory: Any, certificates: Kit, mutual: bool, first: bool) -> None:
    asks = [f'ca_file: "{certificates.ca_file}"', "verify: true"] if mutual else []
    server = nats_server_factory(config=tls(certificates.server, *asks, *["handshake_first: true"] * first))
    shows = {"tls_cert_file": certificates.client.cert_file, "tls_key_file": certificates.client.key_file}
    trusts = {"enable_tls": True, "tls_ca_file": certificates.ca_file, "tls_first": first}
    works(on_nats(server, **trusts, **(shows if mutual else {})))


def test_a_certificate_says_who_the_user_is(on_nats: Make, nats_server_factory: Any, certificates: Kit) -> None:
    asks = f'ca_file: "{certificates.ca_file}"', "verify_and_map: true"
    server = nats_server_factory(config=tls(certificates.server, *asks) + user('user: "CN=client"'))
    trusts = {"enable_tls": True, "tls_ca_file": certificates.ca_file}
    client, other = certificates.client, certificates.server
    works(on_nats(server, **trusts, tls_cert_file=client.cert_file, tls_key_file=client.key_file))
    stranger = on_nats(server, **trusts, tls_cert_file=other.cert_file, tls_key_file=other.key_file)
    with pytest.raises(ConnectionFailed) as refused:
        stranger.connect(PATIENCE)
    assert refused.value.code == "unauthorized"


def test_a_server_that_leaves_tls_open(on_nats: Make, nats_server_factory: Any, certificates: Kit) -> None:
    server = nats_server_factory(config=f"{tls(certificates.server)}\nallow_non_tls: true")
    works(on_nats(server, enable_tls=True, tls_ca_file=certificates.ca_file))
    assert until(lambda: server.monitor("/connz").get("connections"), PATIENCE)
    connections = server.monitor("/connz")["connections"]
    assert [each["tls_version"] for each in connections] == ["1.3"]


def test_one_server_of_three_is_down_and_one_lets_nobody_in(
    on_nats: Make, nats_server_factory: Any, certificates: Kit
) -> None:
    good = nats_server_factory(config=tls(certificates.server) + user('user: "app", password: "right"'))
    bad = nats_server_factory(config=tls(certificates.server) + user('user: "app", password: "other"'))
    servers = [f"nats://127.0.0.1:{free_port()}", bad.url, good.url]
    login = {"user": "app", "password": "right", "enable_tls": True, "tls_ca_file": certificates.ca_file}
    for _ in range(4):  # they are asked in a random order
        with on_nats(good, **login | {"servers": servers}) as service:
            works(service)
