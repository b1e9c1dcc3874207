"""Faults that fuzzing has found, each mended since."""

from __future__ import annotations

import random
import tracemalloc
import uuid
from typing import Any

import pytest
from fuzz_corpus import Message
from fuzz_writers import KafkaWriter, NatsWriter
from prometheus_client import generate_latest
from waiting import until

from incident_messaging import MessagingBackend, MessagingConfig, MessagingService
from incident_messaging.backends.kafka.archive import _named_by
from incident_messaging.backends.nats import wire
from incident_messaging.backends.nats.client import Client
from incident_messaging.codec import SKIPPED, Codec
from incident_messaging.commands.dlq import _line, _page
from incident_messaging.consuming.graves import Grave, dead_letter, shed
from incident_messaging.consuming.letters import read_letter
from incident_messaging.record import RESERVE, Position, Record

PATIENCE = 20.0


def came(block: bytes) -> wire.Message:
    message = wire.Message("p.orders", block, b"{}")
    message.position, message.timestamp = Position(stream="S", sequence=7), 1.0
    return message


def test_a_message_whose_subject_is_no_utf8_is_handed_over() -> None:
    client, taken = Client(tls=False, on_down=lambda: None), []
    client.handlers[1] = lambda *message: taken.append(message)
    client.take(1, b"p.orders.\xff", b"$JS.ACK.S.d.1.1.1.1.0", b"{}", None)
    assert taken


def test_a_message_whose_subject_is_no_utf8_is_a_message_like_others(nats_server: Any) -> None:
    prefix = f"odd-{uuid.uuid4().hex[:8]}"
    config = MessagingConfig(backend=MessagingBackend.NATS, topic_prefix=prefix, nats={"servers": [nats_server.url]})
    with MessagingService(config) as service, NatsWriter(nats_server.address) as writer:
        service.publish("orders.a", {})  # makes the stream
        subject, seen = prefix.encode() + b".orders.\xff", []
        with service.subscribe("orders.*", group="g", callback=seen.append):
            writer.publish([(subject, b"NATS/1.0\r\n\r\n", body) for body in (b"no json", b'{"n": 1}')])
            assert until(lambda: len(seen) == 2 and list(service.dead_letters.list()), PATIENCE)
        assert [delivery.topic for delivery in seen] == ["orders.a", "orders.\udcff"]
        (letter,) = service.dead_letters.list()
        assert (letter.topic, letter.body) == ("orders.\udcff", b"no json")
        assert service.dead_letters.redrive().skipped == {"x-dlq-original-topic is no topic's name": 1}
        assert service.health().ok
    assert b"messaging_dead_letters_total" in generate_latest()


def test_the_names_of_strange_headers_are_not_kept() -> None:
    tracemalloc.start()
    try:
        for number in range(1_100):
            wire.split_headers(b"NATS/1.0\r\n%d%s: v\r\n\r\n" % (number, b"n" * 20_000))
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [b"x-key", b"x-redrive-count"])
def test_every_message_has_a_dead_letter_that_jetstream_takes(name: bytes) -> None:
    message = came(b"NATS/1.0\r\n%s: %s\r\n\r\n" % (name, b"\xff" * 30_000))
    record = dead_letter(message, Grave.of(ValueError(), 1), topic="p.dead-letter", group="g", backend="nats")
    while (smaller := shed(record)) is not None:
        record = smaller
    assert len(wire.encode_headers(record)) <= 65_535


def test_a_forged_mark_does_not_hide_the_dead_letters() -> None:
    class Mark:
        def value(self) -> None:
            return None

        def offset(self) -> int:
            return 1

        def headers(self) -> list[tuple[str, bytes]]:
            return [("x-dlq-removed", b"9" * 5_000)]

    assert _named_by(Mark()) == set()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [b"x-correlation-id", b"Nats-Msg-Id"])
def test_a_message_with_ids_of_foreign_bytes_can_be_forwarded(name: bytes) -> None:
    codec = Codec(source="tests")
    envelope = codec.decoder(dict)(came(b"NATS/1.0\r\n%s: \xff\r\n\r\n" % name))
    assert envelope is not SKIPPED
    codec.write(Record.__new__(Record), envelope, "p.elsewhere", None, None, None)


@pytest.mark.parametrize("written", [b"\x1b[2J", b"\xff", "\x9b2J \u202e".encode(), b"\r\tover"])
def test_what_strangers_wrote_is_shown_and_not_obeyed(written: bytes) -> None:
    block = b"NATS/1.0\r\nx-key: %s\r\nx-dlq-original-topic: p.%s\r\n\r\n" % (written, written)
    letter = read_letter(came(block), MessagingBackend.NATS, "p")
    for shown in (_line(letter), _page(letter)):
        assert shown.encode().replace(b"\n", b"").decode().isprintable()


def test_a_dead_letter_whose_id_is_taken_is_not_lost(nats_server) -> None:
    prefix = f"forged-{uuid.uuid4().hex[:8]}"
    config = MessagingConfig(backend=MessagingBackend.NATS, topic_prefix=prefix, nats={"servers": [nats_server.url]})
    with MessagingService(config) as service, NatsWriter(nats_server.address) as writer:
        service.publish("orders", {})  # makes the stream
        stream = prefix.upper()
        forged = b"NATS/1.0\r\nNats-Msg-Id: dlq:g:%s:3\r\n\r\n" % stream.encode()
        topic = prefix.encode()
        places = writer.publish(
            [(topic + b".other", forged, b"{}"), (topic + b".orders", b"NATS/1.0\r\n\r\n", b"no json")]
        )
        assert places == [f"{stream}-2", f"{stream}-3"]
        with service.subscribe("orders", group="g", callback=lambda _: None):
            assert until(lambda: list(service.dead_letters.list()), PATIENCE)
        # nor is one that is put back
        again = b"NATS/1.0\r\nNats-Msg-Id: dlq:g:%s:3:r1\r\n\r\n" % stream.encode()
        assert writer.publish([(topic + b".other", again, b"{}")]) == [f"{stream}-5"]
        assert service.dead_letters.redrive().done == 1
        found = service.consume("orders", bytes, group="g", timeout=PATIENCE, limit=1)
        assert [delivery.body for delivery in found] == [b"no json"]


def check_that_it_is_cut(settings: dict[str, Any], writer: NatsWriter | KafkaWriter, body: bytes) -> None:
    """Bytes that nobody can read, as many as the broker takes: the dead letter is stored without the last of them."""
    settings["topic_prefix"] = f"full-{uuid.uuid4().hex[:8]}"
    with MessagingService(MessagingConfig.from_mapping(settings)) as service, writer:
        service.publish("orders.a", {})  # makes the topic
        assert writer.store(f"{settings['topic_prefix']}.orders", [Message("full", body, None, [])]) != [None]
        with service.subscribe("orders.a", group="g", callback=lambda _: None):
            assert until(lambda: list(service.dead_letters.list()), PATIENCE)
        (letter,) = service.dead_letters.list()
        assert letter.body_cut
        assert letter.body == body[:-RESERVE]
        report = service.dead_letters.redrive()
        assert (report.done, "x-dlq-body-cut" in next(iter(report.skipped))) == (0, True)


def test_a_full_message_has_a_dead_letter_on_nats(nats_server_factory: Any) -> None:
    server = nats_server_factory(max_payload=100_000)
    body = random.Random(1).randbytes(100_000 - 100)
    check_that_it_is_cut({"backend": "nats", "nats": {"servers": [server.url]}}, NatsWriter(server.address), body)


def test_a_full_message_has_a_dead_letter_on_kafka(kafka_broker: Any) -> None:
    kafka = {"bootstrap_servers": kafka_broker.bootstrap_servers, "partitions": 1}
    body = random.Random(1).randbytes(1_048_576 - 200)  # which no compression makes smaller
    check_that_it_is_cut({"backend": "kafka", "kafka": kafka}, KafkaWriter(kafka_broker.bootstrap_servers), body)
