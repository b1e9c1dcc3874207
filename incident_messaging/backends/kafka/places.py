"""Where a partition begins: at the group's place, or at the start that a new group asked for.

librdkafka is told every position explicitly. Its own rule (``auto.offset.reset``) is ``error``, so
that a place which the broker no longer has is noticed and never silently jumped over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition

from incident_messaging.backends.base import Start
from incident_messaging.backends.kafka import notes
from incident_messaging.backends.kafka.notes import Note
from incident_messaging.backends.kafka.offsets import Place
from incident_messaging.errors import ConfigurationError, ConsumeFailed
from incident_messaging.record import Position

#: What Kafka's ListOffsets takes for a time, beside Unix milliseconds.
_EARLIEST: Final = -2
_LATEST: Final = -1


class Placed(NamedTuple):
    """A partition, the offset it begins at, and what its last owner wrote down."""

    place: Place
    offset: int
    note: Note


class Places:
    """The places of one group, as far as this consumer met them."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._begins: dict[Place, int] = {}
        self._met: set[Place] = set()

    def look(self, client: Consumer, known: Iterable[Place], timeout: float) -> None:
        """Before joining: ``start`` counts for the known partitions if the group has a place in none.

        What it stands for is settled here, once: an assignment may have to be made again before it is stored, and
        "latest" would be another offset then.

        Raises:
            ConfigurationError: It is a position in none of them.
            KafkaException: No answer, or refused.
        """
        known = frozenset(known)
        check(self._start, known)
        if not any(stored.offset >= 0 for stored in committed(client, known, timeout)):
            self._begins = begins(client, known, self._start, timeout)

    def resolve(self, client: Consumer, places: Iterable[Place], timeout: float) -> list[Placed]:
        """Where the partitions begin that were just assigned.

        Raises:
            ConsumeFailed: A place that this consumer has met is gone (``lost_place``).
            KafkaException: No answer, or refused.
        """
        stored = committed(client, places, timeout)
        missing = {found.place for found in stored if found.offset < 0}
        for place in sorted(missing & self._met):
            raise vanished(place)
        begin = begins(client, missing - self._begins.keys(), "earliest", timeout) | self._begins
        self._met.update(found.place for found in stored if found.offset >= 0)
        return [found._replace(offset=begin[found.place]) if found.offset < 0 else found for found in stored]

    def met(self, place: Place) -> None:
        """The broker has confirmed a place."""
        self._met.add(place)


def committed(client: Consumer, places: Iterable[Place], timeout: float) -> list[Placed]:
    """The group's offsets on the broker, negative where it has none, and what was written beside them."""
    asked = [TopicPartition(topic, number) for topic, number in places]
    answered = _checked(client.committed(asked, timeout=timeout)) if asked else ()
    return [Placed((found.topic, found.partition), found.offset, notes.read(found.metadata)) for found in answered]


def check(start: Start, known: Iterable[Place]) -> None:
    """Raise `ConfigurationError` for a position in a partition that is not there, where some are."""
    there = sorted(known)
    if isinstance(start, Position) and there and (start.topic, start.partition) not in there:
        names = ", ".join(f"{topic}-{number}" for topic, number in there[:10])
        raise ConfigurationError(f"start {start} is in no partition of the subscription: it reads {names}")


def begins(client: Consumer, places: Iterable[Place], start: Start, timeout: float) -> dict[Place, int]:
    """The offsets that a start stands for."""
    if isinstance(start, Position):
        named = {(topic, number): start for topic, number in places if _names(start, topic, number)}
        others = begins(client, set(places) - set(named), "earliest", timeout)
        return others | dict.fromkeys(named, start.offset or 0)
    if isinstance(start, datetime):
        found = _at(client, places, max(0, int(start.timestamp() * 1000)), timeout)
        behind = [place for place, offset in found.items() if offset < 0]  # nothing is that young
        return found | _at(client, behind, _LATEST, timeout)
    return _at(client, places, _EARLIEST if start == "earliest" else _LATEST, timeout)


def lost(client: Consumer, place: Place, offset: int | None, timeout: float) -> tuple[int | None, ConsumeFailed]:
    """For a place that the broker no longer has: where the partition begins now, and the error that says so."""
    topic, number = place
    low = None
    try:
        low = _at(client, [place], _EARLIEST, timeout)[place]
        high = _at(client, [place], _LATEST, timeout)[place]
    except KafkaException:
        missing = "how much is missing is not known: the broker did not say"
    else:
        if offset is not None and 0 <= offset < low:
            missing = f"{low - offset} messages may be missing (offsets {offset} to {low - 1})"
        else:
            missing = (
                f"the partition now ends at offset {high}, so it was made anew or cut off: what had not been "
                f"read is missing, and up to {high - low} messages of the new one were not read"
            )
    text = f"Kafka no longer has the place {topic}-{number}-{offset}: {missing}"
    return low, ConsumeFailed(text, code="lost_place", backend="kafka")


def vanished(place: Place) -> ConsumeFailed:
    """The error for a group's place that was on the broker and is not."""
    topic, number = place
    text = (
        f"Kafka no longer has the group's place in {topic}-{number}: the topic was deleted and made anew, or the "
        f"group's offsets were; what had not been read is missing"
    )
    return ConsumeFailed(text, code="lost_place", backend="kafka")


def _names(start: Position, topic: str, number: int) -> bool:
    return start.topic in (None, topic) and start.partition == number


def _at(client: Consumer, places: Iterable[Place], time: int, timeout: float) -> dict[Place, int]:
    asked = [TopicPartition(topic, number, time) for topic, number in places]
    answered = _checked(client.offsets_for_times(asked, timeout=timeout)) if asked else ()
    return {(found.topic, found.partition): found.offset for found in answered}


def _checked(answered: Sequence[TopicPartition]) -> Sequence[TopicPartition]:
    for partition in answered:
        if partition.error is not None:
            raise KafkaException(partition.error)
    return answered
