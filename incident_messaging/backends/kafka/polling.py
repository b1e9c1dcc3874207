"""A consumer's thread: it alone touches the client, and polls whatever happens.

librdkafka serves everything in polls: messages, rebalances, the outcome of commits, errors. All of
its consumer's methods exclude one another, so a call from a second thread waits for the poll of the
first (docs/design); other threads therefore only mark what they want, under `_changed`.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from incident_messaging import topics as names
from incident_messaging.backends.base import ConsumerSpec, MessageConsumer, Sink
from incident_messaging.backends.kafka import errors, places
from incident_messaging.backends.kafka.credentials import Credentials, Making
from incident_messaging.backends.kafka.credit import Credit
from incident_messaging.backends.kafka.link import TopicLog, log
from incident_messaging.backends.kafka.offsets import Ledger, Partition, Place
from incident_messaging.backends.kafka.records import Arrival
from incident_messaging.backends.kafka.topics import Topics
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline, now
from incident_messaging.errors import BackendUnavailable, ConsumeFailed, MessagingError, Timeout
from incident_messaging.record import Received

_T = TypeVar("_T")

#: The longest poll, and the poll while somebody waits for what only a poll can bring.
_SLICE = 0.1
_QUICK = 0.005
#: The pause before such a poll where messages would end it at once.
_BREATH = 0.002
#: How long a little room is kept back, so that each acknowledgement does not fetch the next message.
_SAVING = 0.02
#: How long a close may overrun its deadline.
GRACE = 0.2
#: The longest wait for one answer of the broker outside polls.
ANSWER = 1.0
#: How long to leave the broker alone after it did not answer.
_BACK_OFF = 2.0
#: Messages that one turn takes at most.
_TURN = 1000
#: What an assignment that was lost for good looks like.
_LOST = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION})


class Stopped(Exception):
    """The consumer is being closed, or its client replaced, while its thread waits for the broker."""


class PollingConsumer(MessageConsumer):
    """What group members and broadcasts have in common.

    Guarantees: as `MessageConsumer`; never more than ``prefetch`` messages are out, to the message;
    nothing is delivered twice within one assignment.
    """

    def __init__(
        self,
        config: MessagingConfig,
        topics: Topics,
        first_connection: Callable[[Deadline], None],
        spec: ConsumerSpec,
        sink: Sink,
    ) -> None:
        self._config = config
        self._topics = topics
        self._first_connection = first_connection
        self._spec = spec
        self._sink = sink
        self._changed = threading.Condition()  # guards the ledger and what `open`, `ack` and `close` see
        self._ledger = Ledger()
        self._credit = Credit(self._ledger, spec)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._finished = threading.Event()
        self._stop_by = Deadline(None)
        self._ready = False
        self._error: MessagingError | None = None
        self._waiting_for = "the broker"
        self._last_trouble = ""
        self._abandoned = False
        self._confirming = 0  # calls of `ack` that wait for a commit
        # Only the thread touches what follows.
        self._client: Consumer | None = None
        self._making: Making[Consumer] | None = None  # is made of changed certificates
        self._next: Consumer | None = None  # it is made, to take over
        self._credentials = Credentials(config.kafka)
        self._shaken = False  # the client has met trouble, which may be that it is not let in any more
        self._log = TopicLog()
        self._paused: set[Place] = set()
        self._broken: MessagingError | None = None  # found in a callback, which cannot raise
        self._reassigned: set[Place] = set()
        self._next_look = 0.0

    # What the contract asks for.

    def open(self, deadline: Deadline) -> None:
        """See `MessageConsumer.open`."""
        self._first_connection(deadline)
        with self._changed:
            if self._thread is None and not self._stopping.is_set():
                name = f"incident-messaging-kafka-{self._spec.name}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
            while not self._ready and self._error is None and not self._stopping.is_set() and not deadline.over:
                self._changed.wait(deadline.wait(0.1))
            if self._ready:
                return
            failed = self._error or self._not_ready()
        self.stop(deadline)
        raise failed

    def ack(self, batch: Sequence[Received], deadline: Deadline | None = None) -> None:
        """See `MessageConsumer.ack`."""
        hungry = self._credit.acknowledge(cast(Sequence[Arrival], batch))
        # A suspect is settled at once: whoever ends the process now, it is not this one.
        if hungry or any(message.suspect for message in batch):
            with self._changed:
                self._credit.settle()
                self._changed.notify_all()

    def extend(self, batch: Sequence[Received]) -> None:
        """See `MessageConsumer.extend`; there is nothing to tell, since polling never stops."""

    def stop(self, deadline: Deadline) -> None:
        """Begin to close; `close` waits for the end."""
        with self._changed:
            if not self._stopping.is_set():
                self._stop_by = deadline
                self._stopping.set()
            self._changed.notify_all()
            if self._thread is None:
                self._finished.set()

    def close(self, deadline: Deadline) -> str | None:
        """See `MessageConsumer.close`."""
        self.stop(deadline)
        left = deadline.left()
        if self._finished.wait(0.0 if self._abandoned else None if left is None else left + GRACE):
            if self._thread is not None:
                self._thread.join(GRACE)
            return None
        words = f"thread incident-messaging-kafka-{self._spec.name} did not end in time and is left to finish"
        if not self._abandoned:
            self._abandoned = True
            log.warning("%s", words)
        return words

    @property
    def over(self) -> bool:
        """Whether nothing of it is left."""
        return self._finished.is_set()

    # What a kind of consumer adds. All of it is called on the thread.

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """librdkafka's properties and callbacks."""

    @abstractmethod
    def _begin(self, client: Consumer, topics: dict[str, int]) -> None:
        """Take up the topics (names and numbers of partitions) that are there at the beginning."""

    @abstractmethod
    def _follow(self, client: Consumer, topics: dict[str, int]) -> None:
        """The topics are these now."""

    @abstractmethod
    def _made_anew(self, client: Consumer, topic: str) -> None:
        """The topic was deleted and made anew while we read it."""

    @abstractmethod
    def _look_due(self) -> float | None:
        """Seconds until the next look for topics; ``None`` for never."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether the place exists on the broker."""

    @abstractmethod
    def _work(self, client: Consumer) -> bool:
        """What is to be done between two polls; true if the next one should be quick."""

    @abstractmethod
    def _leave_behind(self, client: Consumer) -> None:
        """Let go of a client that is not let in any more; another one goes on, and will `_begin`."""

    @abstractmethod
    def _before_close(self, client: Consumer) -> None:
        """Hand over what was acknowledged."""

    # The thread.

    def _run(self) -> None:
        try:
            self._client = self._first_client()
            while self._client is not None and not self._stopping.is_set():
                self._serve(self._client)
        except MessagingError as exc:
            self._fail(exc)
        except KafkaException as exc:
            self._fail(errors.consume(errors.of(exc), self._spec.name))
        except Exception as exc:
            log.exception("thread of %s died", self._spec.name)
            self._fail(errors.caused(BackendUnavailable(f"the Kafka consumer died: {exc}", backend="kafka"), exc))
        finally:
            self._leave()

    def _first_client(self) -> Consumer | None:
        """The client, or none where nobody waits for it any more."""
        making = Making(self._make_client, self._config.kafka)
        self._waiting_for = "sasl_oauth_token to return a token"
        while not making.ended(_SLICE):
            if self._stopping.is_set():
                making.give_up()
                return None
        self._waiting_for = "the broker"
        return making.client()

    def _serve(self, client: Consumer) -> None:
        """Work with a client until the end, or until another one has taken over."""
        with suppress(Stopped):
            self._prepare(client)
            while not self._stopping.is_set() and not self._is_outdated():
                self._turn(client)
        if self._next is not None:
            self._leave_behind(client)
            client.close()
            self._client, self._next, self._shaken = self._next, None, False
            self._paused.clear()
            log.info("Kafka certificates have changed: %s has read them anew", self._spec.name)

    def _is_outdated(self) -> bool:
        """Whether another client is to take over, since this one has met trouble and certificates have changed."""
        client = self._client
        changed = client is not None and self._making is None and self._credentials.outdated(client)
        if changed and self._shaken and self._next is None:
            self._making = Making(self._make_client, self._config.kafka)
        if self._making is not None and self._making.ended(0.0):
            making, self._making = self._making, None
            try:
                self._next = making.client()
            except MessagingError as exc:  # half of the files may be new
                self._credentials.tell(str(exc))
        return self._next is not None

    def _make_client(self) -> Consumer:
        kafka = self._config.kafka
        errors.check_token(kafka.bootstrap_servers, kafka.sasl_oauth_token)
        try:  # no name for the properties: a traceback may show a frame's names, and they hold secrets
            with self._credentials.used():
                return Consumer(self._settings() | {"error_cb": self._trouble}, logger=self._log)
        except MessagingError:
            raise
        except (KafkaException, ValueError, TypeError) as exc:
            raise errors.not_created(kafka.bootstrap_servers, exc) from exc

    def _prepare(self, client: Consumer) -> None:
        wanted = [self._spec.dead_letter_topic, None if names.is_pattern(self._spec.topic) else self._spec.topic]
        for topic in filter(None, wanted):
            what = f"topic {topic} to be looked for and made"
            exists = self.persist(what, partial(self._topics.ensure, topic, client.list_topics, ANSWER))
            if not exists and topic == self._spec.dead_letter_topic:
                raise errors.no_dead_letters(topic)
        self._begin(client, self.persist("the list of topics", lambda: self._list(client)))
        self._next_look = now() + (self._look_due() or 0.0)

    def _turn(self, client: Consumer) -> None:
        """One round: look, work, poll, deliver."""
        self._look_for_topics(client)
        quick = self._work(client)
        self._poll(client, quick=quick)
        if self._broken is not None:
            raise self._broken
        while self._log.remade:
            self._made_anew(client, self._log.remade.pop())
        with self._changed:
            batch = self._credit.take()
        if batch and not self._stopping.is_set():
            self._sink.deliver(batch)
        self._pause_or_resume(client)
        if not self._ready:
            self._see_whether_ready()

    def _poll(self, client: Consumer, *, quick: bool) -> None:
        """Poll for as much as may be delivered; without room, wait for it first."""
        with self._changed:
            room = self._credit.room()
            if not room and not quick:
                self._await_room(1, _SLICE)
                self._await_room(max(1, self._spec.prefetch // 4), _SAVING)
                room = self._credit.room()
        waiting = self._credit.waiting
        if quick and waiting and room <= waiting:
            self._stopping.wait(_BREATH)  # each poll may bring one more that there is no room for
        timeout = 0.0 if not room or (waiting and not self._credit.held) else _SLICE
        self._fetch(client, min(timeout, _QUICK) if quick else timeout, room - waiting)

    def _see_whether_ready(self) -> None:
        if self._is_ready():
            with self._changed:
                self._ready = True
                self._changed.notify_all()

    def _await_room(self, messages: int, most: float) -> None:
        """Wait for so much room, or until nothing is out any more. `_changed` is held."""
        missing = messages - self._credit.room()
        if missing > 0:
            self._credit.hungry = min(missing, self._ledger.count)
            self._changed.wait_for(
                lambda: self._credit.room() >= messages or self._confirming or self._stopping.is_set(), most
            )
            self._credit.hungry = 0

    def _fetch(self, client: Consumer, timeout: float, most: int) -> None:
        """Poll, which also serves the callbacks, and take in what came."""
        messages = self._polled(client, timeout, most)
        if not messages:
            return
        last: Place | None = None
        partition: Partition | None = None
        for message in messages:
            error = message.error()
            if error is not None:
                self._met_error(client, message, error)
                continue
            place = _place(message)
            if place != last:  # one follows the other of the same partition
                last = place
                partition = None if place in self._reassigned else self._ledger.get(place)
            if partition is not None:
                self._credit.accept(message, partition)
        for place in self._reassigned:
            # Taken and given again between two messages of one batch: which of them are from before cannot be told.
            if (partition := self._ledger.get(place)) is not None:
                client.seek(TopicPartition(*place, partition.position))

    def _polled(self, client: Consumer, timeout: float, most: int) -> list[Message[Any, Any]]:
        """What has come. Each call lets other threads run first: where much has come, one is enough."""
        self._reassigned.clear()
        if most > 1 and (messages := client.consume(min(most, _TURN), 0)):
            return messages
        first = client.poll(timeout)
        self._reassigned.clear()
        if first is None or most <= 1:
            return [] if first is None else [first]
        return [first, *client.consume(min(most, _TURN) - 1, 0)]

    def _drop_gone(self) -> None:
        """Forget what came from partitions that were taken away."""
        self._credit.drop_gone()
        self._sink.forget(lambda record: cast(Arrival, record).partition.gone)

    def _pause_or_resume(self, client: Consumer) -> None:
        if self._credit.is_full:
            running = {partition.place for partition in self._ledger.partitions()} - self._paused
            if running:
                client.pause([TopicPartition(*place) for place in running])
                self._paused |= running
        elif self._paused and self._credit.is_low:
            self._resume(client, self._paused)

    def _resume(self, client: Consumer, places: Iterable[Place]) -> None:
        """Let paused partitions go on; also those that are taken away, or they would be paused when they come back."""
        paused = self._paused.intersection(places)
        if paused:
            with suppress(KafkaException):  # gone already: it is called in callbacks, which must not raise
                client.resume([TopicPartition(*place) for place in paused])
            self._paused -= paused

    def _look_for_topics(self, client: Consumer) -> None:
        due = self._look_due()
        if due is None or now() < self._next_look:
            return
        self._next_look = now() + due
        try:
            self._follow(client, self._list(client))
        except KafkaException as exc:
            self._trouble(errors.of(exc))
            self._next_look = now() + _BACK_OFF

    def _list(self, client: Consumer) -> dict[str, int]:
        """The topics that are there and wanted, with their numbers of partitions."""
        topic = self._spec.topic
        if not names.is_pattern(topic):
            found = client.list_topics(topic, timeout=ANSWER).topics
        else:
            matches = names.regex(topic).fullmatch
            every = client.list_topics(timeout=ANSWER).topics
            found = {name: every[name] for name in every if matches(name) and self._is_wanted(name)}
        return {name: len(data.partitions) for name, data in found.items() if data.error is None}

    def _is_wanted(self, name: str) -> bool:
        return name != self._spec.dead_letter_topic and not name.startswith("_")

    def persist(self, what: str, ask: Callable[[], _T], meanwhile: Callable[[], None] | None = None) -> _T:
        """Ask the broker until it answers; for `open`, say what is waited for.

        A broker's no to some requests is told in polls alone: ``meanwhile`` polls, where that is allowed.

        Raises:
            SubscribeFailed: It refuses for good.
            Stopped: Nobody waits any more, or not with this client.
        """
        self._waiting_for = what
        while not self._stopping.is_set() and not self._is_outdated():
            try:
                return ask()
            except KafkaException as exc:
                if not errors.passes(errors.of(exc)):
                    raise errors.subscribe(errors.of(exc), what, self._spec.name) from exc
                self._trouble(errors.of(exc))
            if meanwhile is not None:
                meanwhile()
            self._stopping.wait(0.05)
        raise Stopped

    def _met_error(self, client: Consumer, message: Message[Any, Any], error: KafkaError) -> None:
        """An error among the messages."""
        place = _place(message)
        if error.code() in _LOST:
            partition = self._ledger.get(place)
            if partition is None or place[0] in self._log.remade:
                return  # taken away, or about to be
            begins, error_to_tell = places.lost(client, place, message.offset(), ANSWER)
            if begins is not None:  # told once: the next subscription goes on from there
                with self._changed:
                    partition.jump(begins)
            raise error_to_tell
        if error.fatal() or error.code() in errors.DENIED:
            raise errors.subscribe(error, self._spec.topic, self._spec.name)
        self._trouble(error)

    def _trouble(self, error: KafkaError) -> None:
        """librdkafka's ``error_cb``, and everything else that passes by itself."""
        self._shaken = True
        self._last_trouble = error.str()
        log.debug("consumer %s: %s", self._spec.name, self._last_trouble)

    def _fail(self, error: MessagingError) -> None:
        with self._changed:
            self._error = error
            self._ready = self._ready or isinstance(error, ConsumeFailed)  # it had a place, and was opened
            tell = self._ready and not self._stopping.is_set()
            self._changed.notify_all()
        if tell:
            self._sink.ended(error)

    def _not_ready(self) -> MessagingError:
        if self._stopping.is_set():
            return BackendUnavailable("the subscription is closed", code="closed", backend="kafka")
        trouble = f" ({self._last_trouble})" if self._last_trouble else ""
        text = f"Kafka subscription {self._spec.name} was not ready in time: it waited for {self._waiting_for}{trouble}"
        return Timeout(text, backend="kafka")

    def _leave(self) -> None:
        client, following = self._client, self._next
        try:
            try:
                if client is not None:
                    self._before_close(client)
                    client.close()
            finally:
                if following is not None:  # an error has come before it could take over
                    following.close()
        except Exception:
            log.exception("closing of %s failed", self._spec.name)
        finally:
            self._client = self._next = self._making = None
            with self._changed:
                self._stopping.set()
                self._finished.set()
                self._changed.notify_all()


def _place(message: Message[Any, Any]) -> Place:
    return message.topic() or "", message.partition() or 0
