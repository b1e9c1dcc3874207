"""A look into a topic: every partition from its first offset to the end that it has by now.

Kafka cannot take single records out of a log. What is removed is named by a *mark*, a record without a
body in the same partition, and not shown any more; where all that a partition begins with is
removed, the broker is asked to delete it, and then its bytes are gone. Readers of this SDK skip
records without a body; other readers of the topic see the marks as tombstones without a key.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from incident_messaging.backends.base import Archive
from incident_messaging.backends.kafka import errors, settings
from incident_messaging.backends.kafka.credentials import Making
from incident_messaging.backends.kafka.link import DebugLog, log
from incident_messaging.backends.kafka.places import begins
from incident_messaging.backends.kafka.records import Arrival, raw_headers
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import MessagingError, Timeout
from incident_messaging.record import Received

_MARK = "x-dlq-removed"
#: Digits of the largest offset; a mark with more of them is forged.
_MOST_DIGITS = 19
#: The longest wait in C for messages or reports, and for an answer: only between two of them Ctrl-C is heard.
_SLICE = 0.1
_ANSWER = 1.0

_T = TypeVar("_T")


class TopicArchive(Archive):
    """See `Archive`. Joins no group and commits nothing."""

    def __init__(self, config: MessagingConfig, topic: str, patience: float) -> None:
        self._config = config
        self._topic = topic
        self._patience = patience
        self._name = f"incident-messaging-look-{uuid.uuid4().hex[:12]}"  # of a group that it does not join
        self._client: Consumer | None = None
        self._removed: dict[int, set[int]] = {}

    def read(self, since: float = 0.0) -> Iterator[Received]:
        """See `Archive.read`. The marks come behind what they name, so they are looked for first."""
        ends = self._ends()
        if since:
            ends = self._shortened(ends, since)
        for partition, (low, high) in ends.items():
            self._removed.setdefault(partition, set()).update(
                offset for message in self._records(partition, low, high) for offset in _named_by(message)
            )
        for partition, (low, high) in ends.items():
            for message in self._records(partition, low, high):
                if message.offset() not in self._removed[partition] and message.value() is not None:
                    yield Arrival(message, message.topic() or "", message.offset() or 0)

    def remove(self, messages: Sequence[Received]) -> None:
        """See `Archive.remove`."""
        if not messages:
            return
        failed: list[MessagingError] = []
        places = [(message.position.partition or 0, message.position.offset or 0) for message in messages]
        producer = self._made(lambda: Producer(settings.producer(self._config), logger=DebugLog()))
        for partition, offset in places:
            producer.produce(
                self._topic, None, partition=partition, headers=[(_MARK, str(offset).encode())],
                on_delivery=lambda error, mark: self._marked(error, mark, failed),
            )  # fmt: skip
        patience = Deadline.after(self._patience)
        while producer.flush(patience.wait(_SLICE)) and not patience.over:
            pass  # in slices, so that Ctrl-C is heard
        if len(producer):
            raise Timeout(f"{self._topic}: Kafka has not confirmed what was to be removed", backend="kafka")
        if failed:
            raise failed[0]
        for partition, offset in places:
            self._removed.setdefault(partition, set()).add(offset)
        self._trim({partition for partition, _ in places})

    def _marked(self, error: Any, mark: Message[Any, Any], failed: list[MessagingError]) -> None:
        offset = mark.offset()
        if error is not None:
            failed.append(errors.publish(error, self._topic))
        elif offset is None or offset < 0:
            failed.append(errors.no_offset(self._topic))
        else:
            self._removed.setdefault(mark.partition() or 0, set()).add(offset)

    def close(self) -> None:
        """See `Archive.close`."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _trim(self, partitions: set[int]) -> None:
        """Have the broker delete what a partition begins with, up to what is still wanted."""
        wanted = []
        for partition in partitions:
            low, high = self._patiently(partial(self._bounds, partition))
            until = low
            while until < high and until in self._removed[partition]:
                until += 1
            if until > low:
                wanted.append(TopicPartition(self._topic, partition, until))
        if not wanted:
            return
        admin = self._made(lambda: AdminClient(settings.connection(self._config.kafka) | {"log_level": 0}))
        answers = admin.delete_records(wanted, request_timeout=self._patience)
        for place in wanted:
            self._await_deletion(answers[place])
        answers.clear()  # they hold their errors, whose tracebacks would hold the clients, and their threads

    def _await_deletion(self, answer: Future[Any]) -> None:
        try:
            answer.result(self._patience)
        except Exception as exc:  # the marks are there, and hide what stays
            log.info("%s: what was removed could not be deleted from the log: %s", self._topic, exc)
        finally:
            del answer

    def _connected(self) -> Consumer:
        if self._client is None:
            self._client = self._made(lambda: Consumer(settings.looker(self._config, self._name), logger=DebugLog()))
        return self._client

    def _made(self, make: Callable[[], _T]) -> _T:
        """A client; ``make`` has no name for the properties: a traceback may show a frame's names."""
        kafka, patience = self._config.kafka, Deadline.after(self._patience)

        def checked() -> _T:
            errors.check_token(kafka.bootstrap_servers, kafka.sasl_oauth_token)
            return make()

        try:
            making = Making(checked, kafka)
            while not making.ended(patience.wait(_SLICE)):
                if patience.over:
                    making.give_up()
                    raise errors.no_token(kafka.bootstrap_servers)
            return making.client()
        except KafkaException as exc:
            raise errors.not_created(kafka.bootstrap_servers, exc) from exc

    def _ends(self) -> dict[int, tuple[int, int]]:
        client = self._connected()
        try:
            found = self._patiently(lambda: client.list_topics(self._topic, timeout=_ANSWER)).topics[self._topic]
            if found.error is not None:
                if found.error.code() in errors.UNKNOWN_TOPIC:
                    return {}
                raise KafkaException(found.error)
            return {number: self._patiently(partial(self._bounds, number)) for number in sorted(found.partitions)}
        except KafkaException as exc:
            raise self._failed(exc) from exc

    def _shortened(self, ends: dict[int, tuple[int, int]], since: float) -> dict[int, tuple[int, int]]:
        """From the first record of each partition that is not older than a time."""
        places, start = [(self._topic, partition) for partition in ends], datetime.fromtimestamp(since, UTC)
        client = self._connected()
        try:
            found = self._patiently(lambda: begins(client, places, start, _ANSWER))
        except KafkaException as exc:
            raise self._failed(exc) from exc
        return {partition: (found[self._topic, partition], high) for partition, (_, high) in ends.items()}

    def _bounds(self, partition: int) -> tuple[int, int]:
        return self._connected().get_watermark_offsets(TopicPartition(self._topic, partition), timeout=_ANSWER)

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        """Ask in slices, so that Ctrl-C is heard, as long as the broker only does not answer."""
        patience = Deadline.after(self._patience)
        while True:
            try:
                return ask()
            except KafkaException as exc:
                if patience.over or not errors.passes(errors.of(exc)):
                    raise

    def _records(self, partition: int, low: int, high: int) -> Iterator[Message[Any, Any]]:
        if low >= high:
            return
        client = self._connected()
        client.assign([TopicPartition(self._topic, partition, low)])
        while (message := self._next(client)) is not None:
            if (message.offset() or 0) >= high:
                return
            yield message
            if (message.offset() or 0) == high - 1:
                return

    def _next(self, client: Consumer) -> Message[Any, Any] | None:
        """The next record of the partition; none where it ends (what lies behind the last record is none)."""
        silence = Deadline.after(self._patience)
        while not silence.over:
            message = client.poll(silence.wait(_SLICE))
            error = message.error() if message is not None else None
            if message is not None and error is None:
                return message
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                return None
            if error is not None and not errors.passes(error):
                raise self._failed(KafkaException(error))
        raise Timeout(f"{self._topic}: Kafka has stopped answering", backend="kafka")

    def _failed(self, exc: KafkaException) -> MessagingError:
        error = errors.of(exc)
        if errors.passes(error):
            return Timeout(f"{self._topic}: Kafka does not answer: {error.str()}", backend="kafka")
        return errors.subscribe(error, self._topic, self._name)


def _named_by(message: Message[Any, Any]) -> set[int]:
    """The offsets that a mark takes out, its own and the one that it names; none of any other record."""
    named: Any = dict(raw_headers(message)).get(_MARK)
    if message.value() is not None or not named or not named.isdigit() or len(named) > _MOST_DIGITS:
        return set()
    return {message.offset() or 0, int(named)}
