"""Publishing on JetStream: outcomes, order, refusals, and what a broken connection does to them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import nats
import pytest
from nats_kit import PATIENCE, SLACK, Outcomes, Reader, api, fails, in_time, publish, record
from waiting import takes, until

from incident_messaging.backends.nats.broker import NatsBroker
from incident_messaging.errors import (
    BackendUnavailable,
    ConnectionFailed,
    PublishFailed,
    Timeout,
)

Brokers = Callable[..., NatsBroker]
Servers = Callable[..., Any]
Read = Callable[..., Reader]


def test_each_record_is_acknowledged_with_its_position(broker: NatsBroker, prefix: str) -> None:
    positions = publish(broker, f"{prefix}.orders", range(500))
    assert [position.sequence for position in positions if position] == list(range(1, 501))
    assert {position.stream for position in positions if position} == {prefix.upper()}


def test_key_headers_and_bytes_arrive_whole(broker: NatsBroker, prefix: str, read: Read) -> None:
    headers = {
        "x-message-id": "m1",
        "plain": "a b;c=d/%e",
        "blanks": "  both sides ",
        "lines": "one\r\ntwo",
        "umlaut": "Störung ✓",
        "foreign": b"\xff\xfe".decode("utf-8", "surrogateescape"),
        "empty": "",
    }
    sent = dict(headers)
    publish(broker, f"{prefix}.orders", [b"\x00\xff"], key="Schlüssel 1%", headers=headers, dedup_id="the-id")
    reader = read(broker, f"{prefix}.orders")
    reader.wait(1)
    message = reader.seen[0]
    assert message.body == b"\x00\xff"
    assert message.key == "Schlüssel 1%"
    assert {name: message.headers[name] for name in headers} == sent
    assert headers == sent, "the caller's headers were changed"
    assert not [name for name, _ in message.raw_headers if name.lower().startswith("nats-")]
    assert message.fallback_id == "the-id"
    assert message.position.stream == prefix.upper()
    assert message.position.sequence == 1


def test_raw_pairs_travel_as_they_are(broker: NatsBroker, prefix: str, read: Read) -> None:
    pairs = [("twice", b"first"), ("twice", b"\xfflast"), ("percent", b"100%25")]
    publish(broker, f"{prefix}.orders", [b"x"], raw_headers=pairs)
    reader = read(broker, f"{prefix}.orders")
    reader.wait(1)
    assert list(reader.seen[0].raw_headers) == pairs
    assert reader.seen[0].headers["twice"] == b"\xfflast".decode("utf-8", "surrogateescape")


def test_an_empty_body_stays_empty(broker: NatsBroker, prefix: str, read: Read) -> None:
    publish(broker, f"{prefix}.orders", [b""])
    reader = read(broker, f"{prefix}.orders")
    reader.wait(1)
    assert reader.seen[0].body == b""


def test_the_same_id_is_stored_once(broker: NatsBroker, prefix: str) -> None:
    outcomes = Outcomes()
    for _ in range(2):
        outcomes.send(broker, record(f"{prefix}.orders", dedup_id="same"))
    outcomes.wait()
    assert [duplicate for _, _, duplicate, _ in outcomes.told] == [False, True]


def test_sending_never_blocks_and_connects_by_itself(
    broker: NatsBroker, prefix: str, new_broker: Brokers, silent_port: int
) -> None:
    away, outcomes = new_broker(f"nats://127.0.0.1:{silent_port}"), Outcomes()
    with takes(at_most=SLACK):  # it would wait for its whole time
        outcomes.send(away, record("t.orders"))
    away.close(in_time(0.1))
    assert isinstance(outcomes.wait()[0], BackendUnavailable)
    outcomes = Outcomes()
    outcomes.send(broker, record(f"{prefix}.orders"))
    assert outcomes.wait() == [None]
    assert broker.status().state == "connected"


def test_many_threads_each_keep_their_order(
    broker: NatsBroker, prefix: str, read: Read, later: Callable[[Callable[[], object]], threading.Thread]
) -> None:
    outcomes = [Outcomes() for _ in range(8)]

    def send(number: int) -> None:
        for at in range(200):
            outcomes[number].send(broker, record(f"{prefix}.orders", f"{number}:{at}"))

    for thread in [later(lambda number=number: send(number)) for number in range(8)]:  # type: ignore[misc]
        thread.join()
    for each in outcomes:
        assert set(each.wait()) == {None}
    reader = read(broker, f"{prefix}.orders")
    reader.wait(1600)
    for number in range(8):
        mine = [body for body in reader.bodies if body.startswith(f"{number}:")]
        assert mine == [f"{number}:{at}" for at in range(200)]


def test_a_dead_port_is_named_at_once(new_broker: Brokers, free_port: int, capfd: Any) -> None:
    broker = new_broker(f"nats://127.0.0.1:{free_port}")
    with takes(at_most=SLACK):
        error = fails(broker, record("t.orders"))
    assert isinstance(error, ConnectionFailed)
    assert error.code == "unreachable"
    assert str(error) == f"NATS connection failed: connection refused (nats://127.0.0.1:{free_port})"
    assert broker.status().state == "new"
    assert capfd.readouterr().err == ""


def test_a_record_sent_before_the_server_is_there_ends_with_its_own_deadline(
    new_broker: Brokers, silent_port: int
) -> None:
    broker = new_broker(f"nats://127.0.0.1:{silent_port}")
    with takes(at_most=0.4 + SLACK, at_least=0.3):
        error = fails(broker, record("t.orders"), seconds=0.4)
    assert isinstance(error, ConnectionFailed)
    assert "no answer" in str(error)


def test_kill_and_restart_loses_nothing_and_keeps_the_order(
    nats_server_factory: Servers, new_broker: Brokers, read: Read
) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url)
    publish(broker, "t.orders", ["first"])
    outcomes = Outcomes()
    for number in range(3000):
        outcomes.send(broker, record("t.orders", number), seconds=30)
        if number == 1500:
            server.kill()
            server.start()
    assert set(outcomes.wait(seconds=30)) == {None}
    reader = read(broker, "t.orders")
    reader.wait(3001)
    assert reader.bodies == ["first", *map(str, range(3000))]


def test_while_the_server_is_away_records_wait_for_it(nats_server_factory: Servers, new_broker: Brokers) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url)
    publish(broker, "t.orders", ["first"])
    server.kill()
    assert until(lambda: broker.status().state == "disconnected")
    error = fails(broker, record("t.orders"), seconds=0.3)
    assert isinstance(error, Timeout)
    assert not error.maybe_delivered
    outcomes = Outcomes()
    outcomes.send(broker, record("t.orders"))
    server.start()
    with takes(at_most=2 * SLACK):
        assert outcomes.wait() == [None]


def test_a_frozen_server_leaves_the_outcome_unknown(nats_server_factory: Servers, new_broker: Brokers) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url)
    publish(broker, "t.orders", ["first"])
    server.freeze()
    with takes(at_most=0.5 + SLACK, at_least=0.4):
        error = fails(broker, record("t.orders", dedup_id="unknown"), seconds=0.5)
    assert isinstance(error, Timeout)
    assert error.maybe_delivered
    server.thaw()
    again = Outcomes()
    again.send(broker, record("t.orders", dedup_id="unknown"))
    again.wait()
    assert [duplicate for _, _, duplicate, _ in again.told] == [True]


def test_a_silent_server_is_noticed_by_pings_and_left(nats_server_factory: Servers, new_broker: Brokers) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url, ping_interval_secs=0.2)
    publish(broker, "t.orders", ["first"])
    server.freeze()
    outcomes = Outcomes()
    for number in range(2000):  # more than the socket takes: closing such a connection politely hangs
        outcomes.send(broker, record("t.orders", b"x" * 5000, dedup_id=f"f{number}"), seconds=30)
    assert until(lambda: broker.status().state == "disconnected")
    server.thaw()
    with takes(at_most=3 * SLACK):
        assert set(outcomes.wait()) == {None}
    assert api(server.url, "STREAM.INFO.T")["state"]["messages"] == 2001


@pytest.mark.parametrize("part", ["body", "headers"])
def test_what_the_server_would_not_take_is_refused_before_it_is_sent(
    nats_server_factory: Servers, new_broker: Brokers, part: str
) -> None:
    server = nats_server_factory(max_payload=2048)
    broker = new_broker(server.url)
    publish(broker, "t.orders", ["first"])
    big = "x" * 2000
    sent = record("t.orders", big) if part == "body" else record("t.orders", headers={"big": big})
    error = fails(broker, sent)
    assert isinstance(error, PublishFailed)
    assert error.code == "too_large"
    assert "max_payload" in str(error)
    publish(broker, "t.orders", ["after"])
    assert broker.status().error is None, "the connection was lost over it"


def test_a_dead_letter_may_use_what_is_kept_free_for_it(nats_server_factory: Servers, new_broker: Brokers) -> None:
    server = nats_server_factory(max_payload=2048)
    broker = new_broker(server.url)
    body = "x" * 1800
    assert fails(broker, record("t.orders", body)).code == "too_large"
    publish(broker, "t.dead-letter", [body], headers={"x-dlq-original-topic": "t.orders"})


def test_more_headers_than_jetstream_stores(broker: NatsBroker, prefix: str) -> None:
    error = fails(broker, record(f"{prefix}.orders", headers={"long": "x" * 70_000}))
    assert error.code == "too_large"


def test_without_a_stream_the_error_names_subject_and_remedy(nats_server: Any, new_broker: Brokers) -> None:
    broker = new_broker(nats_server.url, prefix="nobody", create_streams=False)
    with takes(at_most=2 * SLACK):
        error = fails(broker, record("nobody.orders"))
    assert isinstance(error, PublishFailed)
    assert error.code == "no_stream"
    assert "nobody.orders" in str(error)
    assert "create_streams" in str(error)


def test_a_burst_that_finds_no_stream_keeps_its_order(broker: NatsBroker, prefix: str, read: Read) -> None:
    broker.connect(in_time())
    publish(broker, f"{prefix}.orders", range(300))
    reader = read(broker, f"{prefix}.orders")
    reader.wait(300)
    assert reader.bodies == [str(number) for number in range(300)]


def test_a_stream_deleted_meanwhile_is_made_again(broker: NatsBroker, prefix: str, nats_server: Any) -> None:
    publish(broker, f"{prefix}.orders", ["first"])
    api(nats_server.url, f"STREAM.DELETE.{prefix.upper()}")
    assert [each.sequence for each in publish(broker, f"{prefix}.orders", ["a", "b"]) if each] == [1, 2]


def test_a_full_stream_says_so(nats_server: Any, new_broker: Brokers, prefix: str) -> None:
    broker = new_broker(nats_server.url, prefix=prefix, stream_max_bytes=3000)
    outcomes = Outcomes()
    for _ in range(5):
        outcomes.send(broker, record(f"{prefix}.orders", b"x" * 1000))
    errors = [error for error in outcomes.wait() if error is not None]
    assert errors
    assert {(type(error), error.code, error.retryable) for error in errors} == {(PublishFailed, "stream_full", True)}


def test_a_subject_that_is_denied_ends_soon_and_harms_no_other(
    nats_server_factory: Servers, new_broker: Brokers
) -> None:
    users = """authorization { users = [
        { user: "u", password: "p", permissions: { publish: { deny: "t.Secret" } } }] }"""
    server = nats_server_factory(config=users)
    broker = new_broker(server.url, user="u", password="p")
    publish(broker, "t.orders", ["first"])
    with takes(at_most=2 * SLACK):
        error = fails(broker, record("t.Secret"))
    assert isinstance(error, PublishFailed)
    assert error.code == "denied"
    assert "t.Secret" in str(error)
    publish(broker, "t.orders", ["after"])


def test_after_close_records_are_refused(broker: NatsBroker, prefix: str) -> None:
    publish(broker, f"{prefix}.orders", ["first"])
    assert broker.close(in_time()) == 0
    error = fails(broker, record(f"{prefix}.orders"))
    assert isinstance(error, BackendUnavailable)
    assert error.code == "closed"
    assert broker.status().state == "closed"


def test_close_sends_what_was_handed_over(nats_server: Any, broker: NatsBroker, prefix: str) -> None:
    outcomes = Outcomes()
    for number in range(2000):
        outcomes.send(broker, record(f"{prefix}.orders", number))
    assert broker.close(in_time(10.0)) == 0
    assert set(outcomes.wait()) == {None}
    assert api(nats_server.url, f"STREAM.INFO.{prefix.upper()}")["state"]["messages"] == 2000


def test_close_with_a_frozen_server_is_bounded_and_counts(nats_server_factory: Servers, new_broker: Brokers) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url)
    publish(broker, "t.orders", ["first"])
    server.freeze()
    outcomes = Outcomes()
    for _ in range(1000):
        outcomes.send(broker, record("t.orders", b"x" * 5000))
    with takes(at_most=1.0 + SLACK):
        assert broker.close(in_time(1.0)) == 1000
    errors = outcomes.wait()
    assert {(type(error), getattr(error, "maybe_delivered", None)) for error in errors} == {(Timeout, True)}


def test_close_while_the_server_is_away_is_bounded(nats_server_factory: Servers, new_broker: Brokers) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url)
    publish(broker, "t.orders", ["first"])
    server.kill()
    assert until(lambda: broker.status().state == "disconnected")
    outcomes = Outcomes()
    outcomes.send(broker, record("t.orders"))
    with takes(at_most=0.5 + SLACK):
        assert broker.close(in_time(0.5)) == 1
    assert isinstance(outcomes.wait()[0], BackendUnavailable)


def test_a_call_on_the_loops_own_thread_raises_at_once(broker: NatsBroker, prefix: str) -> None:
    caught: list[BaseException] = []

    def done(*_: object) -> None:
        try:
            broker.connect(in_time())
        except BackendUnavailable as exc:
            caught.append(exc)

    broker.send(record(f"{prefix}.orders"), in_time(), done)
    assert until(lambda: caught, PATIENCE)
    assert isinstance(caught[0], BackendUnavailable)
    assert caught[0].code == "loop_thread"


def test_a_core_subscriber_does_not_stand_in_for_a_stream(broker: NatsBroker, nats_server: Any, prefix: str) -> None:
    """Whoever listens on the subject is a responder to the server, which then does not say that there is no stream."""

    async def listen(done: asyncio.Event, ready: threading.Event) -> None:
        client = await nats.connect(nats_server.url, allow_reconnect=False)
        await client.subscribe(f"{prefix}.>")
        await client.flush()
        ready.set()
        await done.wait()
        await client.close()

    loop, done, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(listen(done, ready),))
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        (position,) = publish(broker, f"{prefix}.orders", [1])
        assert position is not None
        assert position.stream == prefix.upper()
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()
