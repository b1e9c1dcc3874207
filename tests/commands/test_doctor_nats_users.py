"""The command ``incident-messaging doctor`` where a NATS server has users, accounts and limits; and without one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import doctor_kit
import nats
import pytest
from doctor_kit import api_of

from incident_messaging.backends.nats import checkup, dial
from incident_messaging.brokers import NatsServer
from incident_messaging.brokers.ports import free_port

#: What a user of the last resort is allowed, and what is missing for each of the others.
NAMES, ALL = "$JS.API.STREAM.NAMES", "llm-im.>"
CONSUMER = (
    "llm-im.dead-letter", NAMES, "$JS.API.STREAM.INFO.LLM-IM", "$JS.API.CONSUMER.CREATE.LLM-IM.>",
    "$JS.API.CONSUMER.INFO.LLM-IM.*", "$JS.API.CONSUMER.MSG.NEXT.LLM-IM.*", "$JS.API.CONSUMER.DELETE.LLM-IM.*",
    "$JS.ACK.LLM-IM.>", "$JS.API.STREAM.INFO.KV_incident-messaging", "$JS.API.STREAM.MSG.GET.KV_incident-messaging",
    "$KV.incident-messaging.>", "$JS.API.CONSUMER.LIST.LLM-IM", "$JS.API.STREAM.MSG.GET.LLM-IM",
)  # fmt: skip
USERS = {
    "publisher": (ALL, NAMES),
    "consumer": CONSUMER,
    "blind": (ALL,),
    "one-topic": ("llm-im.orders", NAMES, "$JS.API.STREAM.INFO.LLM-IM"),
    "no-acks": tuple(each for each in CONSUMER if "ACK" not in each),
    "no-letters": CONSUMER[1:],
    "no-bucket": tuple(each for each in CONSUMER if "KV" not in each),
}


def _user(name: str, subjects: tuple[str, ...]) -> str:
    rights = f'publish: {json.dumps(subjects)}, subscribe: [ "_INBOX.>" ]'
    return f'{{ user: "{name}", password: "p", permissions {{ {rights} }} }}'


_USERS = ", ".join(_user(*each) for each in USERS.items())
CONFIG = f"""
max_payload: 65536
accounts {{
  A {{ jetstream: enabled, users: [ {{ user: admin, password: p }}, {_USERS} ] }}
  EMPTY {{ jetstream: enabled, users: [ {{ user: creator, password: p }}, {_user("no-creator", CONSUMER)} ] }}
  FULL {{ jetstream: {{ max_store: 1000000, max_streams: 1 }}, users: [ {{ user: full, password: p }} ] }}
  OFF {{ users: [ {{ user: no-stream, password: p }} ] }}
}}
"""


@pytest.fixture(scope="module")
def guarded() -> Iterator[NatsServer]:
    """A server with users who may do more or less, and one stream."""
    with NatsServer(config=CONFIG) as server:
        api = api_of(server.url, user="admin", password="p")
        api("STREAM.CREATE.LLM-IM", name="LLM-IM", subjects=["llm-im.>"], storage="file")
        bucket = "KV_incident-messaging"
        api(f"STREAM.CREATE.{bucket}", name=bucket, subjects=["$KV.incident-messaging.>"], storage="file")
        yield server


def as_user(server: NatsServer, user: str, *options: str, **settings: Any) -> doctor_kit.Answer:
    return doctor_kit.ask(
        {"nats.servers": server.url, "nats.user": user, "nats.password": "p", "max_message_size": 65536} | settings,
        *options,
    )


RIGHTS = [
    ("publisher", "publisher", set(), ""),
    ("consumer", "consumer", set(), ""),
    ("publisher", "both", {("right to subscribe", "broken"), ("right to subscribe", "warning")}, "$JS.ACK.LLM-IM.>"),
    ("blind", "both", {("jetstream", "broken")}, NAMES),
    ("one-topic", "publisher", {("right to publish", "warning")}, ALL),
    ("no-acks", "consumer", {("right to subscribe", "broken")}, "$JS.ACK.LLM-IM.>"),
    ("no-letters", "consumer", {("right to subscribe", "broken")}, "llm-im.dead-letter"),
    ("no-bucket", "consumer", {("right to subscribe", "warning")}, "$KV.incident-messaging.>"),
]


@pytest.mark.parametrize(("user", "role", "bad", "grants"), RIGHTS, ids=[f"{each[0]}-{each[1]}" for each in RIGHTS])
def test_rights(guarded: NatsServer, user: str, role: str, bad: set[tuple[str, str]], grants: str) -> None:
    answer = as_user(guarded, user, "--role", role)
    found = {each for each in answer.bad if each[0].startswith("right") or each[0] in ("jetstream", "server")}
    assert found == bad, answer
    if grants:
        assert any(f'"{grants}" in permissions.publish' in each["remedy"] for each in answer.findings)


def test_a_right_to_the_one_topic_that_is_used(guarded: NatsServer) -> None:
    assert (
        as_user(guarded, "one-topic", "--role", "publisher", "--topic", "orders").worst("right to publish")["severity"]
        == "ok"
    )
    refused = as_user(guarded, "one-topic", "--role", "publisher", "--topic", "bills").worst("right to publish")
    assert (refused["severity"], "llm-im.bills" in refused["what"]) == ("broken", True)


@pytest.mark.parametrize(("user", "severity"), [("creator", "ok"), ("no-creator", "broken")])
def test_a_right_to_make_what_is_missing(guarded: NatsServer, user: str, severity: str) -> None:
    answer = as_user(guarded, user, "--role", "consumer")
    finding = answer.worst("right to create")
    assert finding["severity"] == severity, finding
    assert api_of(guarded.url, user="creator", password="p")("STREAM.NAMES")["streams"] is None, "nothing was made"
    if severity == "broken":
        assert '"$JS.API.STREAM.CREATE.LLM-IM" in permissions.publish' in finding["remedy"]


def test_a_bucket_that_nobody_makes(guarded: NatsServer) -> None:
    finding = as_user(guarded, "creator", **{"nats.create_streams": "false"}).worst("right to create")
    assert (finding["severity"], finding["remedy"]) == ("warning", "nats kv add incident-messaging --ttl 24h")


def test_rights_are_tried_in_silence(guarded: NatsServer) -> None:
    """Neither who listens to a topic nor the stream is told that a right was tried."""

    async def listened() -> tuple[list[str], int]:
        client = await nats.connect(guarded.url, user="admin", password="p")
        heard: list[str] = []

        async def hear(message: Any) -> None:
            heard.append(message.subject)

        await client.subscribe("llm-im.>", cb=hear)
        await client.subscribe("$KV.>", cb=hear)
        await client.flush()
        await asyncio.to_thread(as_user, guarded, "admin", "--topic", "orders")
        await client.flush()
        kept = (await client.jetstream().stream_info("LLM-IM")).state.messages
        await client.close()
        return heard, kept

    assert asyncio.run(listened()) == ([], 0)


def test_a_server_that_cannot_try_rights(guarded: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "_TRACES", (99, 0))
    finding = as_user(guarded, "admin").worst("right to publish")
    assert (finding["severity"], "cannot try a right" in finding["what"]) == ("warning", True)


def test_the_account_has_no_jetstream(guarded: NatsServer) -> None:
    answer = as_user(guarded, "no-stream", **{"nats.request_timeout_ms": 500})
    finding = answer.worst("jetstream")
    assert finding["severity"] == "broken", finding
    assert "jetstream: enabled" in finding["remedy"]
    assert answer.worst("stream")["severity"] == "not done"


def test_an_account_that_may_have_no_more(guarded: NatsServer) -> None:
    assert "the account has room" in as_user(guarded, "full").worst("room", about="account")["what"]
    api_of(guarded.url, user="full", password="p")("STREAM.CREATE.S", name="S", subjects=["llm-im.>"], storage="file")
    finding = as_user(guarded, "full").worst("room", about="account")
    assert (finding["severity"], finding["what"]) == ("warning", "the account has 1 of 1 streams")
    assert "max_streams" in finding["remedy"]


def test_max_payload_below_max_message_size(guarded: NatsServer) -> None:
    finding = as_user(guarded, "admin", max_message_size=1_048_576).worst("max_payload")
    assert (finding["severity"], "65,536" in finding["what"]) == ("warning", True)


def test_core_delivery_is_looked_at_as_far_as_it_goes(guarded: NatsServer) -> None:
    answer = as_user(guarded, "admin", **{"nats.delivery": "core"})
    assert answer.worst("jetstream")["severity"] == "not done"
    assert answer.exit_code == 0


CLOSED = f"nats://127.0.0.1:{free_port()}"


@pytest.mark.parametrize(
    ("settings", "says", "remedy"),
    [
        ({"nats.servers": CLOSED}, f"NATS connection failed: connection refused ({CLOSED})", f"--server {CLOSED} rtt"),
        ({"nats.password": "wrong"}, "authorization violation", "correct the login"),
        ({"nats.enable_tls": "true"}, "TLS is asked for and the server offers none", "correct nats.enable_tls"),
        (
            {"nats.password": "", "nats.password_file": "/nowhere"},
            "cannot read /nowhere",
            "the file that the text names",
        ),
    ],
    ids=["unreachable", "password", "tls", "file"],
)
def test_no_connection(guarded: NatsServer, settings: dict[str, str], says: str, remedy: str) -> None:
    answer = as_user(guarded, "admin", **settings)
    finding = answer.worst("server")
    assert (finding["severity"], answer.exit_code) == ("broken", 2)
    assert says in finding["what"]
    assert remedy in finding["remedy"]
    assert {each["severity"] for each in answer.findings if each["check"] not in ("server", "client library")} == {
        "not done"
    }


def test_one_of_two_servers_is_away(guarded: NatsServer) -> None:
    finding = as_user(guarded, "admin", **{"nats.servers": f"{guarded.url},{CLOSED}"}).worst("server")
    assert (finding["severity"], f"connection refused ({CLOSED})" in finding["what"]) == ("warning", True)


def test_a_server_that_is_too_old(guarded: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "_OLDEST", (99, 0))
    finding = as_user(guarded, "admin").worst("server")
    assert (finding["severity"], "is too old: 99.0 or later is needed" in finding["what"]) == ("broken", True)
