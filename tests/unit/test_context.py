"""The correlation id and the message in hand: what publishes and log lines take from the context."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from incident_messaging import MessageEnvelope, MessagingService
from incident_messaging.context import LogFields, correlation_id
from incident_messaging.testing import run_until_idle


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    token = correlation_id.set(None)
    yield
    correlation_id.reset(token)


@pytest.fixture
def seen(messaging: MessagingService) -> list[tuple[str, str | None]]:
    """Topic and correlation id of all that is published."""
    seen: list[tuple[str, str | None]] = []
    messaging.subscribe(">", callback=lambda d: seen.append((d.topic, d.metadata.correlation_id)), group="witness")
    return seen


def test_a_publish_takes_the_correlation_id_of_the_context(messaging: MessagingService, seen: list[Any]) -> None:
    correlation_id.set("request-1")
    messaging.publish("orders", {})
    messaging.publish_batch("orders", [{}])
    run_until_idle(messaging)
    assert seen == [("orders", "request-1")] * 2


def test_what_a_publish_or_its_envelope_says_itself_counts_more(messaging: MessagingService, seen: list[Any]) -> None:
    correlation_id.set("request-1")
    messaging.publish("orders", {}, correlation_id="mine")
    messaging.publish("orders", MessageEnvelope.new({}, correlation_id="its own"))
    messaging.publish("orders", MessageEnvelope.new({}))
    run_until_idle(messaging)
    assert [found for _, found in seen] == ["mine", "its own", "request-1"]


def test_a_callback_publishes_under_the_correlation_id_of_its_message(
    messaging: MessagingService, seen: list[Any]
) -> None:
    messaging.subscribe("first", callback=lambda _: messaging.publish("second", {}))
    messaging.subscribe("second", callback=lambda _: messaging.publish("third", {}))
    messaging.publish("first", {}, correlation_id="story-1")
    run_until_idle(messaging)
    assert sorted(seen) == [("first", "story-1"), ("second", "story-1"), ("third", "story-1")]
    assert correlation_id.get() is None


def test_a_message_without_one_hides_that_of_the_thread(messaging: MessagingService, seen: list[Any]) -> None:
    messaging.subscribe("first", callback=lambda _: messaging.publish("second", {}))
    messaging.publish("first", {})
    correlation_id.set("the test's own")
    run_until_idle(messaging)
    assert sorted(seen) == [("first", None), ("second", None)]
    assert correlation_id.get() == "the test's own"


def test_one_that_is_no_text_is_refused(messaging: MessagingService) -> None:
    correlation_id.set(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="correlation_id 7 is not allowed"):
        messaging.publish("orders", {})


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    """What passes a handler with the filter."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    keep = Keep()
    keep.addFilter(LogFields())
    loggers = [logging.getLogger("incident_messaging"), logging.getLogger("app")]
    for logger in loggers:
        logger.addHandler(keep)
    yield records
    for logger in loggers:
        logger.removeHandler(keep)


def test_log_lines_tell_of_the_message_in_hand(messaging: MessagingService, lines: list[Any]) -> None:
    def handle(delivery: Any) -> None:
        logging.getLogger("app").warning("working")
        raise RuntimeError("out of luck")

    messaging.subscribe("orders", callback=handle, group="pager")
    receipt = messaging.publish("orders", {}, correlation_id="story-1")
    with pytest.raises(RuntimeError):
        run_until_idle(messaging)

    assert [line.name for line in lines] == ["app", "incident_messaging"]  # the SDK's own line on the failure, too
    for line in lines:
        told = (line.message_id, line.correlation_id, line.topic, line.group, line.attempt)
        assert told == (receipt.message_id, "story-1", "orders", "pager", 1)


def test_elsewhere_the_fields_are_there_and_empty(lines: list[Any]) -> None:
    logging.getLogger("app").warning("idle", extra={"topic": "its own"})
    assert (lines[0].message_id, lines[0].topic, lines[0].attempt) == (None, "its own", None)
