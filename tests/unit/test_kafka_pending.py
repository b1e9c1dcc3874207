"""Records on their way are found again when their time is up, and what is said of those that a client gave back."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from incident_messaging.backends.base import Parcel
from incident_messaging.backends.kafka.broker import KafkaBroker
from incident_messaging.backends.kafka.pending import PendingRecords
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import Timeout
from incident_messaging.record import Record

RECORD = Record(topic="t", body=b"", dedup_id="1")
LATEST = 0.02  # seconds that a record may be found late


class Sent(Parcel):
    def __init__(self, at: float) -> None:
        self.take(RECORD)
        self.deadline = Deadline(at)
        self.sent = 1

    def __call__(self, *outcome: object) -> None:
        self.outcome = outcome


def at(one: Parcel) -> float:
    return one.deadline.at


@given(st.lists(st.floats(0, 100), max_size=50), st.floats(0, 100))
def test_overdue_is_found_never_early_and_hardly_late(times, now):
    records = PendingRecords()
    every = [Sent(time) for time in times]
    for one in every:
        records.add(one)
    late = set(records.overdue(now))
    assert all(at(one) <= now for one in late)
    assert all(one in late for one in every if at(one) + LATEST < now)


def test_removed_once_and_gone():
    records = PendingRecords()
    one, other = Sent(1.0), Sent(1.0)
    records.add(one)
    records.add(other)
    assert records.remove(one)
    assert not records.remove(one)
    assert one not in records
    assert records.all() == [other]
    assert len(records) == 1


def test_empty_slots_are_dropped_but_a_late_record_can_still_be_removed():
    records = PendingRecords()
    one = Sent(1.0)
    records.add(one)
    assert records.overdue(2.0) == [one]
    assert records.overdue(2.0) == [one]
    assert records.remove(one)
    assert records.overdue(2.0) == []
    assert len(records) == 0


AUTHENTICATION, PURGED = KafkaError(KafkaError._AUTHENTICATION), KafkaError(KafkaError._PURGE_QUEUE)


@pytest.mark.parametrize(
    ("leaving", "error", "again"),
    [(False, AUTHENTICATION, True), (True, AUTHENTICATION, True), (True, PURGED, True), (False, PURGED, False)],
)
def test_what_a_client_did_not_send_is_taken_back(leaving, error, again):
    broker, one = KafkaBroker(MessagingConfig(backend="kafka")), Sent(1.0)
    broker._pending.add(one)
    client: Any = object()
    broker._leaving = client if leaving else None
    message: Any = None
    broker._reported(one, error, message)
    assert (broker._taken_back == [one], one in broker._pending) == (again, again)


def test_what_a_client_gave_back_may_be_stored():
    broker, one, other = KafkaBroker(MessagingConfig(backend="kafka")), Sent(1.0), Sent(1.0)
    message: Any = None
    for each in (one, other):
        broker._pending.add(each)
    broker._hold_first([one])
    one.sent += 1  # by the client that follows
    for each in (one, other):
        broker._reported(each, PURGED, message)
    outcomes = [each.outcome[2] for each in (one, other)]
    assert all(isinstance(error, Timeout) for error in outcomes)
    assert [error.maybe_delivered for error in outcomes] == [True, False]
    overdue = broker._overdue(one)
    assert isinstance(overdue, Timeout)
    assert overdue.maybe_delivered
