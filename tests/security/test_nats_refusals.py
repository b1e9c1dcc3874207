"""What is wrong with a connection to NATS is said in words, in time, and without the secret."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest
from certificates import Kit
from files import unreadable, write
from nats_accounts import Key, Operator
from nats_secured import Make, tls, user
from waiting import takes

from incident_messaging import ConfigurationError, ConnectionFailed
from incident_messaging.brokers import NatsServer

#: Seconds for a call; what a server or a file refuses takes far less.
TIMEOUT = 15.0
#: The same where the server says nothing.
SILENCE = 1.0

OPERATOR, KEY = Operator(), Key.of_user()


@pytest.fixture(scope="module")
def servers(certificates: Kit) -> Iterator[dict[str, NatsServer]]:
    """One server of each kind, for all tests here."""
    ours = certificates.server
    configs = {
        "plain": "",
        "tls": tls(ours),
        "mutual": tls(ours, f'ca_file: "{certificates.ca_file}"', "verify: true"),
        "tls-first": tls(ours, "handshake_first: true", "timeout: 30"),  # else it ends the silence after two seconds
        "expired": tls(certificates.expired),
        "elsewhere": tls(certificates.wrong_host),
        "unknown": tls(certificates.others_server),
        "password": user('user: "app", password: "right"'),
        "token": 'authorization { token: "right" }',
        "nkey": user(f"nkey: {KEY.public}"),
        "jwt": OPERATOR.config,
    }
    with ExitStack() as stack:
        yield {name: stack.enter_context(NatsServer(config=config)) for name, config in configs.items()}


def refused(
    make: Make, server: NatsServer, timeout: float = TIMEOUT, **nats: Any
) -> ConnectionFailed | ConfigurationError:
    service = make(server, **nats)
    with takes(at_most=TIMEOUT / 2), pytest.raises((ConnectionFailed, ConfigurationError)) as caught:
        service.connect(timeout)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return caught.value


@attrs.frozen
class Case:
    """What a client with these fields hears of a server; ``trusts`` and ``shows`` name certificates of the kit."""

    server: str
    code: str
    words: str
    trusts: str | None = "authority"
    shows: str | None = None
    fields: dict[str, Any] = attrs.field(factory=dict)


HANDSHAKES = {
    "wrong authority": Case("unknown", "tls", "unable to get local issuer certificate"),
    "unknown to the system": Case("tls", "tls", "unable to get local issuer", None, fields={"enable_tls": True}),
    "expired": Case("expired", "tls", "certificate has expired"),
    "wrong host": Case("elsewhere", "tls", "not valid for '127.0.0.1'"),
    "no certificate of ours": Case("mutual", "tls", "see nats.tls_cert_file"),
    "our expired certificate": Case("mutual", "tls", "see nats.tls_cert_file", shows="expired"),
    "our certificate of others": Case("mutual", "tls", "see nats.tls_cert_file", shows="others_client"),
    "plain text to TLS": Case("tls", "tls", "the server wants TLS, so see nats.enable_tls", None),
    "plain text to TLS first": Case("tls-first", "unreachable", "see nats.tls_first", None),
    "TLS to TLS first": Case("tls-first", "unreachable", "see nats.tls_first"),
    "TLS to plain text": Case("plain", "tls", "TLS is asked for and the server offers none"),
    "TLS first to plain text": Case("plain", "tls", "answered in plain text", fields={"tls_first": True}),
}  # fmt: skip


@pytest.mark.parametrize("what", HANDSHAKES)
def test_a_handshake_that_fails(on_nats: Make, servers: dict[str, NatsServer], certificates: Kit, what: str) -> None:
    case = HANDSHAKES[what]
    fields = dict(case.fields)
    if case.trusts is not None:
        fields |= {"enable_tls": True, "tls_ca_file": getattr(certificates, case.trusts).ca_file}
    if case.shows is not None:
        shown = getattr(certificates, case.shows)
        fields |= {"tls_cert_file": shown.cert_file, "tls_key_file": shown.key_file}
    timeout = SILENCE if case.code == "unreachable" else TIMEOUT
    error = refused(on_nats, servers[case.server], timeout, **fields)
    assert isinstance(error, ConnectionFailed)
    assert error.code == case.code
    assert case.words in str(error)
    assert servers[case.server].url in str(error)


LOGINS = {
    "wrong password": ("password", {"user": "app", "password": "wr0ng"}),
    "wrong user": ("password", {"user": "wr0ng", "password": "right"}),
    "no password": ("password", {}),
    "wrong token": ("token", {"token": "wr0ng"}),
    "another's key": ("nkey", {"nkey_seed": Key.of_user().seed}),
    "expired JWT": ("jwt", {"credentials_text": OPERATOR.credentials(seconds=-5)}),
    "another operator's": ("jwt", {"credentials_text": Operator().credentials()}),
}


@pytest.mark.parametrize("what", LOGINS)
def test_a_login_that_is_refused(on_nats: Make, servers: dict[str, NatsServer], what: str) -> None:
    server, fields = LOGINS[what]
    error = refused(on_nats, servers[server], **fields)
    assert isinstance(error, ConnectionFailed)
    assert error.code == "unauthorized"
    assert f"authorization violation ({servers[server].url})" in str(error)
    assert not [value for name, value in fields.items() if name != "user" and value in str(error)]


#: The fields of a file, what else they need, and what is said of a file that is there and holds something else.
FILES: dict[str, tuple[dict[str, Any], str]] = {
    "tls_ca_file": ({"enable_tls": True}, "no certificate in PEM"),
    "tls_cert_file": ({"enable_tls": True, "tls_key_file": "key"}, "no certificate and its key in PEM"),
    "tls_key_file": ({"enable_tls": True, "tls_cert_file": "cert"}, "no certificate and its key in PEM"),
    "credentials": ({}, "not a .creds text"),
    "nkey_seed_file": ({}, "holds no NKey seed"),
    "password_file": ({"user": "app"}, "is empty or not UTF-8 text"),
    "token_file": ({}, "is empty or not UTF-8 text"),
}


@pytest.mark.parametrize("field", FILES)
def test_a_file_that_cannot_be_used(
    on_nats: Make, servers: dict[str, NatsServer], certificates: Kit, tmp_path: Path, field: str
) -> None:
    rest, words = FILES[field]
    known = {"key": certificates.client.key_file, "cert": certificates.client.cert_file}
    rest = {name: known.get(value, value) for name, value in rest.items()}

    def said(path: Path) -> str:
        error = refused(on_nats, servers["tls"], **rest, **{field: path})
        assert isinstance(error, ConfigurationError)
        return str(error)

    assert f"nats.{field}: cannot read {tmp_path / 'missing'}" in said(tmp_path / "missing")
    assert "No such file" in said(tmp_path / "missing")
    assert "Is a directory" in said(tmp_path)
    bad = tmp_path / "bad"
    bad.write_bytes(b"s3cret text, and no such thing \xff")
    assert words in said(bad) or "UTF-8" in said(bad)
    assert "s3cret" not in said(bad)
    with unreadable(bad):
        assert "Permission denied" in said(bad)


def test_files_that_belong_to_others_or_are_locked(
    on_nats: Make, servers: dict[str, NatsServer], certificates: Kit
) -> None:
    def said(cert: Path, key: Path) -> str:
        fields = {"enable_tls": True, "tls_ca_file": certificates.ca_file, "tls_cert_file": cert, "tls_key_file": key}
        return str(refused(on_nats, servers["mutual"], **fields))

    client, locked = certificates.client, certificates.locked
    assert "key values mismatch" in said(client.cert_file, certificates.server.key_file)
    assert "nats.tls_key_file is encrypted" in said(locked.cert_file, locked.key_file)
    assert "no certificate and its key in PEM" in said(client.key_file, client.cert_file)


def test_credentials_that_are_cut_short(on_nats: Make, servers: dict[str, NatsServer], tmp_path: Path) -> None:
    """nats-py looks for the end of such a file for ever."""
    whole = OPERATOR.credentials()
    for size in (40, len(whole) // 2, whole.index("SEED") + 20):
        error = refused(on_nats, servers["jwt"], credentials=write(tmp_path / "app.creds", whole[:size]))
        assert "not a .creds text" in str(error)
    assert "nats.credentials_text is not" in str(refused(on_nats, servers["jwt"], credentials_text=whole[:200]))
    assert "nats.nkey_seed holds no" in str(refused(on_nats, servers["nkey"], nkey_seed="SUAN\u00e9"))
