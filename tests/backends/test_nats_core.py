"""Core NATS: at most once, with the same contract otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from nats_kit import QUIET, SLACK, Outcomes, Reader, fails, in_time, publish, record
from waiting import takes, until

from incident_messaging.backends.nats.broker import NatsBroker
from incident_messaging.errors import ConnectionFailed, PublishFailed, SubscribeFailed, Timeout

Brokers = Callable[..., NatsBroker]
Servers = Callable[..., Any]
Read = Callable[..., Reader]


@pytest.fixture
def core(new_broker: Brokers, nats_server: Any, prefix: str) -> NatsBroker:
    return new_broker(nats_server.url, prefix=prefix, delivery="core")


def test_what_is_published_after_open_is_seen(
    core: NatsBroker, new_broker: Brokers, nats_server: Any, prefix: str, read: Read
) -> None:
    other = new_broker(nats_server.url, prefix=prefix, delivery="core")
    other.connect(in_time())
    for number in range(50):
        reader = read(core, f"{prefix}.orders", group=None)
        publish(other, f"{prefix}.orders", [number], key="k", headers={"umlaut": "ü"})
        assert reader.wait(1) == [str(number)]
        assert (reader.seen[0].key, reader.seen[0].headers["umlaut"]) == ("k", "ü")


def test_members_of_a_group_share_and_broadcasts_see_all(core: NatsBroker, prefix: str, read: Read) -> None:
    members = [read(core, f"{prefix}.>", group="g") for _ in range(2)]
    alone = read(core, f"{prefix}.*", group=None)
    publish(core, f"{prefix}.orders", range(200))
    assert alone.wait(200) == [str(number) for number in range(200)]
    assert until(lambda: sum(len(member.seen) for member in members) == 200)
    assert all(member.seen for member in members)


def test_prefetch_holds_for_core_too(core: NatsBroker, prefix: str, read: Read) -> None:
    reader = read(core, f"{prefix}.orders", prefetch=5, acks=False)
    publish(core, f"{prefix}.orders", range(12))
    reader.wait(5)
    assert not until(lambda: len(reader.seen) > 5, QUIET)
    reader.ack(list(reader.seen))
    reader.wait(10)


def test_a_slow_consumer_is_reported(core: NatsBroker, prefix: str, read: Read, caplog: Any) -> None:
    reader = read(core, f"{prefix}.orders", prefetch=2, acks=False)
    publish(core, f"{prefix}.orders", range(100))
    assert until(lambda: "slow consumer" in (core.status().error or "") and "slow consumer" in caplog.text)
    assert len([each for each in caplog.records if "slow consumer" in each.message]) == 1
    assert reader.most_unsettled == 2


def test_what_a_broken_connection_swallowed_is_unknown(
    nats_server_factory: Servers, new_broker: Brokers, read: Read
) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url, delivery="core")
    reader = read(broker, "t.orders")
    publish(broker, "t.orders", ["first"])
    server.freeze()
    outcomes = Outcomes()
    outcomes.send(broker, record("t.orders", "lost"))
    server.kill()
    error = outcomes.wait()[0]
    assert isinstance(error, Timeout)
    assert error.maybe_delivered
    server.start()
    publish(broker, "t.orders", ["after"])
    assert until(lambda: reader.bodies[-1:] == ["after"])


def test_a_frozen_server_times_out(nats_server_factory: Servers, new_broker: Brokers) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url, delivery="core")
    publish(broker, "t.orders", ["first"])
    server.freeze()
    with takes(at_most=0.4 + SLACK, at_least=0.3):
        error = fails(broker, record("t.orders"), seconds=0.4)
    assert isinstance(error, Timeout)
    assert error.maybe_delivered
    server.thaw()


def test_refusals(nats_server_factory: Servers, new_broker: Brokers, read: Read, free_port: int) -> None:
    users = """authorization { users = [{ user: "u", password: "p", permissions: {
        publish: { deny: "t.secret" }, subscribe: { deny: "t.secret" } } }] }"""
    server = nats_server_factory(config=users, max_payload=2048)
    broker = new_broker(server.url, delivery="core", user="u", password="p")
    big = fails(broker, record("t.orders", b"x" * 3000))
    assert isinstance(big, PublishFailed)
    assert big.code == "too_large"
    assert fails(broker, record("t.secret")).code == "denied"
    with pytest.raises(SubscribeFailed) as caught:
        read(broker, "t.secret")
    assert caught.value.code == "denied"
    publish(broker, "t.orders", ["after"])
    dead = new_broker(f"nats://127.0.0.1:{free_port}", delivery="core")
    assert isinstance(fails(dead, record("t.orders")), ConnectionFailed)


def test_no_stream_is_made(core: NatsBroker, nats_server: Any, prefix: str, read: Read) -> None:
    from nats_kit import stream_names

    read(core, f"{prefix}.orders")
    publish(core, f"{prefix}.orders", ["0"])
    assert prefix.upper() not in stream_names(nats_server.url)
