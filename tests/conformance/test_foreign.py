"""Messages of other writers on the same topics: the reader is lenient, and what it cannot read is kept."""

from __future__ import annotations

import time
from typing import Any

import pytest
from bench import PATIENCE, Bench, Seen
from waiting import until

from incident_messaging import MESSAGING_METRICS, IncidentCreated

needs = pytest.mark.needs


@needs("positions")
def test_a_bare_payload_gets_its_metadata_from_the_broker(bench: Bench) -> None:
    with bench.service.subscribe("orders", IncidentCreated, group="g") as subscription:
        bench.service.publish("orders", IncidentCreated("INC-0", "low", "net", "up"), key="k")  # makes the topic
        assert subscription.next(PATIENCE) is not None
        body = b'{"type":"Created","incident_id":"INC-1","severity":"high","incident_type":"db","title":"down"}'
        before = int(time.time())
        bench.write("orders", body, key="k", tenant="a")
        delivery = subscription.next(PATIENCE)
    assert delivery is not None
    assert delivery.payload == IncidentCreated("INC-1", "high", "db", "down")
    assert (delivery.body, delivery.key, delivery.headers["tenant"]) == (body, "k", "a")
    assert delivery.metadata.message_id == str(delivery.position)
    assert before - 1 <= delivery.metadata.timestamp <= time.time() + 1


def test_an_envelope_of_another_writer(bench: Bench) -> None:
    body = (
        b'{"metadata":{"message_id":"m-1","timestamp":"2026-01-02T03:04:05.678Z","source":"rust","version":"1.0",'
        b'"correlation_id":null,"headers":{"a":"b"},"shard":7},"payload":{"n":1,"more":null},"schema":"x"}'
    )
    with bench.service.subscribe("orders", group="g") as subscription:
        bench.service.publish("orders", {"n": 0})  # makes the topic
        assert subscription.next(PATIENCE) is not None
        bench.write("orders", body)
        delivery = subscription.next(PATIENCE)
    assert delivery is not None
    assert delivery.payload == {"n": 1, "more": None}
    metadata = delivery.metadata
    assert (metadata.message_id, metadata.timestamp, metadata.source) == ("m-1", 1_767_323_045, "rust")
    assert (metadata.correlation_id, metadata.headers) == (None, {"a": "b"})


@needs("keeps")
@pytest.mark.parametrize("body", [b"", b"\xff\xfe{", b'{"n": NaN}', b'{"n": 1'])
def test_bytes_that_are_no_json_end_in_the_dead_letters_as_they_came(bench: Bench, body: bytes) -> None:
    seen = Seen()
    bench.service.subscribe("orders", group="g", callback=seen)
    bench.service.publish("orders", {"n": 0}, key="k")
    bench.write("orders", body, key="k", tenant="a")
    bench.service.publish("orders", {"n": 1}, key="k")
    assert seen.wait(2) == [0, 1]
    (letter,) = bench.dead_letters(1)
    assert (letter.body, letter.key, letter.headers["tenant"]) == (body, "k", "a")
    assert letter.headers["x-dlq-exception-type"] == "incident_messaging.errors.SerializationError"


def test_any_bytes_can_be_read_as_bytes(bench: Bench) -> None:
    with bench.service.subscribe("orders", bytes, group="g") as subscription:
        bench.service.publish("orders", {"n": 0}, key="k")
        assert subscription.next(PATIENCE) is not None
        bench.write("orders", b"\xff\xfe{", key="k")
        delivery = subscription.next(PATIENCE)
    assert delivery is not None
    assert delivery.payload == delivery.body == b"\xff\xfe{"


@needs("keeps")
def test_a_redriven_message_is_for_the_group_that_failed(bench: Bench) -> None:
    bench.service.publish("orders", {"n": 0}, key="k")
    bench.write("orders", b'{"n": 1}', key="k", x_redrive_group="one", x_redrive_count="1")
    bench.service.publish("orders", {"n": 2}, key="k")
    assert bench.rest("orders", 3, group="one") == [0, 1, 2]
    assert bench.rest("orders", 2, group="two") == [0, 2]
    labels = {"topic": "orders", "backend": bench.features.label, "reason": "redriven_for_another_group"}
    assert MESSAGING_METRICS.value("skipped", **labels) >= 1
    assert bench.rest("orders", 0, group="two") == []


@needs("tombstones")
def test_a_tombstone_is_skipped_and_counted(bench: Bench) -> None:
    def skipped() -> float:
        labels = {"topic": "orders", "backend": bench.features.label, "reason": "tombstone"}
        return MESSAGING_METRICS.value("skipped", **labels)

    before, seen = skipped(), Seen()
    bench.service.subscribe("orders", group="g", callback=seen)
    bench.service.publish("orders", {"n": 0}, key="k")
    bench.write("orders", None, key="k")
    bench.service.publish("orders", {"n": 1}, key="k")
    assert seen.wait(2) == [0, 1]
    assert until(lambda: skipped() - before == 1, PATIENCE)


def test_what_we_write_others_can_read(bench: Bench) -> None:
    with bench.service.subscribe("orders", bytes, group="g") as subscription:
        receipt = bench.service.publish("orders", IncidentCreated("INC-1", "high", "db", "down"), correlation_id="c")
        delivery: Any = subscription.next(PATIENCE)
    metadata = delivery.metadata
    assert delivery.body.decode() == (
        f'{{"metadata":{{"message_id":"{receipt.message_id}","correlation_id":"c","timestamp":{metadata.timestamp},'
        '"source":"llm-incident-manager","version":"1.0","headers":{}},'
        '"payload":{"type":"Created","incident_id":"INC-1","severity":"high","incident_type":"db","title":"down"}}'
    )
