"""Apache Kafka: publishing. Consuming is in `consumer`.

librdkafka owns the sockets and its own threads; what happened it tells only to who polls. One
thread, ``incident-messaging-kafka-reports``, polls for ever, delivers the reports, and ends what has
run out of time. Until the topic of a record is known to exist (so also before there is a connection)
the record is *held* here: what never reached librdkafka can be given up without doubt.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from incident_messaging.backends.base import (
    Archive,
    ConsumerSpec,
    MessageConsumer,
    MessageProducer,
    Parcel,
    Sink,
    Status,
    Where,
    broken_off,
)
from incident_messaging.backends.kafka import errors, settings
from incident_messaging.backends.kafka.archive import TopicArchive
from incident_messaging.backends.kafka.consumer import consumer_for
from incident_messaging.backends.kafka.credentials import Credentials, Making
from incident_messaging.backends.kafka.diagnosis import tls_trouble
from incident_messaging.backends.kafka.link import Link, let_go, log
from incident_messaging.backends.kafka.pending import PendingRecords
from incident_messaging.backends.kafka.polling import GRACE, PollingConsumer
from incident_messaging.backends.kafka.records import header_pairs, key_of
from incident_messaging.backends.kafka.topics import Topics
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline, now
from incident_messaging.errors import BackendUnavailable, MessagingError
from incident_messaging.record import Position

#: How long one poll lasts; a record's end is noticed at most this and a slot of 20 ms late.
_SLICE = 0.05
_REPORTS: Final = "incident-messaging-kafka-reports"
_HELPER: Final = "incident-messaging-kafka-topics"
#: The same before the first connection, which nothing but a look at it tells.
_QUICK = 0.005
#: How often the reports thread looks after the rest, where reports follow one another more quickly.
_LOOK = 0.01
#: How long a producer that may write nothing is left away while nothing is to be written.
_PARKED = 15.0
#: How long to leave a broker alone after a fatal error.
_REST = 1.0
#: How long a look waits whether a broker is back.
_PROBE = 0.5
#: How long the helper waits for one answer of the broker before it looks whether it is still wanted.
_ANSWER = 2.0

#: How long a client that is replaced has to send what it has, before it is taken back from it.
_DRAIN = 5.0
#: Seconds that it takes to tell the sender of one record that nothing more is known of it.
_TELLING = 1e-4


class KafkaBroker(MessageProducer):
    """Kafka as a producer, and the maker of its consumers.

    Guarantees: as `MessageProducer`. Everything native is reachable from here, also what consumers
    use, so that a forked child that keeps this object alive frees none of it.
    """

    name = "kafka"

    def __init__(self, config: MessagingConfig) -> None:
        self._config = config
        self._link = Link(config.kafka.bootstrap_servers, partial(tls_trouble, config.kafka))
        self._credentials = Credentials(config.kafka)
        self._topics = Topics(config.kafka)
        self._lock = threading.RLock()  # guards what follows
        self._changed = threading.Condition(self._lock)  # told when the link or a thread has changed
        self._client: Producer | None = None
        self._leaving: Producer | None = None  # sends what it has, while a new one waits to take over
        self._taken_back: list[Parcel] = []
        self._making: Making[Producer] | None = None  # is made of changed certificates, to take over
        self._pending = PendingRecords()
        self._held: dict[str, list[Parcel]] = {}
        self._consumers: list[PollingConsumer] = []
        self._reports: threading.Thread | None = None
        self._helper: threading.Thread | None = None
        self._closing: Deadline | None = None
        self._refusing: KafkaError | None = None  # why the user may not publish, while a client is emptied
        self._bursting: int | None = None  # the thread that is told of many reports
        self._lost = 0
        self._next_look = 0.0
        self._refused_for: int | None = None  # the code of the last denial

    # What the contract asks for.

    def connect(self, deadline: Deadline) -> None:
        """See `MessageProducer.connect`."""
        with self._changed:
            refusals = self._link.refusals
            self._start()
            while self._closing is not None or self._link.state != "connected":
                if self._closing is not None:
                    raise _closed()
                new = self._link.state == "new"  # after the first connection an outage is ridden out
                if refusal := self._link.hopeless or (new and self._link.refusals > refusals and self._link.refusal):
                    raise refusal
                if deadline.over:
                    raise self._link.timed_out()
                self._changed.wait(deadline.wait(0.1))

    def send_all(self, parcels: Sequence[Parcel]) -> None:
        """See `MessageProducer.send_all`."""
        refused, rest = [], iter(parcels)
        try:
            with self._lock:
                for parcel in rest:
                    self._pending.add(parcel)
                    error = self._hand_over(parcel) if self._closing is None else _closed()
                    if error is not None:
                        refused.append((parcel, error))
        except BaseException:
            broken_off(rest, self.name)
            self.told()
            raise
        for parcel, error in refused:
            self._finish(parcel, error)

    def consumer(self, spec: ConsumerSpec, sink: Sink) -> MessageConsumer:
        """See `MessageProducer.consumer`."""
        consumer = consumer_for(self._config, self._topics, self._first_connection, spec, sink)
        with self._changed:
            self._consumers = [*(other for other in self._consumers if not other.over), consumer]
        return consumer

    def archive(self, topic: str, patience: float) -> Archive:
        """See `MessageProducer.archive`."""
        return TopicArchive(self._config, topic, patience)

    def status(self) -> Status:
        """See `MessageProducer.status`."""
        return Status(state=self._link.state if self._closing is None else "closed", error=self._link.trouble)

    def close(self, deadline: Deadline) -> int:
        """See `MessageProducer.close`."""
        with self._changed:
            self._closing = self._closing or deadline
            self._changed.notify_all()
            consumers, threads = self._consumers, (self._reports, self._helper)
        for consumer in consumers:
            consumer.stop(deadline)
        for consumer in consumers:
            consumer.close(deadline)
        telling = _TELLING * len(self._pending)
        if self._await_end(Deadline.after(max(0.0, (deadline.left() or 0.0) + GRACE - telling))):
            for thread in filter(None, threads):
                thread.join(0.1)
        else:
            log.warning("thread %s did not end in time and is left to finish", _REPORTS)
            self._lost = max(self._lost, self._give_up())
        return self._lost

    # Records: handed over, held, finished. `_changed` is held by who calls the first three.

    def _hand_over(self, parcel: Parcel) -> MessagingError | None:
        """Give a record to librdkafka, or hold it where its topic is not known; the error if refused."""
        topic = parcel.topic
        if self._client is not None and topic not in self._held and self._topics.known(topic):
            return self._produce(self._client, parcel)
        if self._link.hopeless is not None:
            return self._link.hopeless
        self._hold(parcel)
        self._start()
        return None

    def _hold(self, parcel: Parcel) -> None:
        self._held.setdefault(parcel.topic, []).append(parcel)

    def _produce(self, client: Producer, parcel: Parcel) -> MessagingError | None:
        # Under the lock, so that a record that was held is not overtaken by a later one of its key.
        try:
            client.produce(
                parcel.topic,
                parcel.body,
                key_of(parcel),
                on_delivery=partial(self._reported, parcel),
                headers=header_pairs(parcel),
            )
        except BufferError as exc:
            return errors.caused(errors.publish(KafkaError(KafkaError._QUEUE_FULL), parcel.topic), exc)
        except KafkaException as exc:
            error = errors.of(exc)
            if error.code() in errors.UNKNOWN_TOPIC:
                self._topics.forget(parcel.topic)
            elif error.code() != KafkaError._FATAL:
                return errors.publish(error, parcel.topic)
            self._hold(parcel)  # it was not taken: wait for the topic, or for the next producer
            self._start()
            return None
        parcel.sent += 1
        return None

    def _release(self, topic: str, failed: MessagingError | None) -> None:
        """Hand over what was held for a topic, or fail it."""
        refused = []
        with self._lock:
            held = [parcel for parcel in self._held.pop(topic, ()) if parcel in self._pending]
            for parcel in held:
                error = failed or self._hand_over(parcel)
                if error is not None:
                    refused.append((parcel, error))
        for parcel, error in refused:
            self._finish(parcel, error)

    def _finish(self, parcel: Parcel, error: MessagingError | None, where: Where | None = None) -> None:
        """Tell a record's outcome, unless it was told already: a report may come after the deadline."""
        if self._pending.remove(parcel):
            self._tell(parcel, error, where)

    def _tell(self, parcel: Parcel, error: MessagingError | None, where: Where | None = None) -> None:
        try:
            parcel(where, False, error)
        except Exception:
            log.exception("the handler of a delivery report raised")
        if self._bursting != threading.get_ident():
            self.told()

    def _reported(self, parcel: Parcel, error: KafkaError | None, message: Message[Any, Any]) -> None:
        """librdkafka's delivery report."""
        if error is None:
            if self._link.state != "connected":
                self._link.up()
            offset = message.offset()
            if offset is None:
                self._finish(parcel, errors.no_offset(parcel.topic))
            else:
                self._finish(parcel, None, partial(_stored_at, parcel.topic, message.partition(), offset))
            return
        code = error.code()
        if code == KafkaError._AUTHENTICATION or (code == KafkaError._PURGE_QUEUE and self._leaving is not None):
            self._taken_back.append(parcel)  # to be sent again
            return
        if code == KafkaError._PURGE_QUEUE and parcel.sent > 1:
            error = KafkaError(KafkaError._MSG_TIMED_OUT)  # another client may have sent it before
        elif code == KafkaError._PURGE_QUEUE:
            error = self._refusing or error
        if code in errors.UNKNOWN_TOPIC:
            self._topics.forget(parcel.topic)
        self._finish(parcel, errors.publish(error, parcel.topic))

    # The threads.

    def _start(self) -> None:
        """See that somebody works: the reports, and the helper while it has something to do."""
        if self._closing is None and self._reports is None:
            self._reports = threading.Thread(target=self._run_reports, name=_REPORTS, daemon=True)
            self._reports.start()
        if self._helper is None and self._task() is not None:
            self._helper = threading.Thread(target=self._run_helper, name=_HELPER, daemon=True)
            self._helper.start()

    def _run_reports(self) -> None:
        try:
            self._make_client()
            while not self._is_over():
                self._turn()
            self._lost = len(self._pending)
            self._purge()
        except MessagingError as exc:
            self._link.refuse(exc)
            self._refuse_held()
        except Exception:
            log.exception("thread %s died", _REPORTS)
        finally:
            self._give_up(last=True)

    def _make_client(self) -> None:
        making = Making(self._new_client, self._config.kafka)
        while not making.ended(_SLICE):
            self._end_overdue()
            if self._is_over():
                making.give_up()
                return
        with self._lock:
            self._client = making.client()

    def _new_client(self) -> Producer:
        source = self._config.kafka.sasl_oauth_token
        self._link.asks = source is not None  # librdkafka asks once more
        try:  # no name for the properties: a traceback may show a frame's names, and they hold secrets
            errors.check_token(self._link.servers, source)
            with self._credentials.used():
                return Producer(settings.producer(self._config) | {"error_cb": self._link.error}, logger=self._link)
        except MessagingError:
            raise
        except (KafkaException, ValueError, TypeError) as exc:
            raise errors.not_created(self._link.servers, exc) from exc
        finally:
            self._link.asks = False

    def _turn(self) -> None:
        if self._client is None:  # none was made any more, and a record is just being refused
            time.sleep(_QUICK)
            return
        refusals, is_new = self._link.refusals, not self._link.connected_once
        try:
            self._poll(_QUICK if is_new else _SLICE)
        except KafkaException as exc:  # so it tells of errors after which the producer is of no use
            self._replace(errors.of(exc))
            return
        if self._taken_back:
            self._change_to(self._client, Deadline.after(0.0))
        if is_new or now() >= self._next_look:
            self._look_after(refusals, is_new=is_new)
            self._next_look = now() + _LOOK

    def _look_after(self, refusals: int, *, is_new: bool) -> None:
        """All that need not be done behind each report, where it would keep the interpreter from who waits for that."""
        assert self._client is not None
        if self._making is None and self._credentials.outdated(self._client):
            self._making = Making(self._new_client, self._config.kafka)
        if self._making is not None and self._making.ended(0.0):
            self._renew(self._making)
        if is_new and _has_answered(self._client):
            self._link.up()
        if self._link.refusals > refusals:
            self._refuse_held()
        self._end_overdue()
        with self._changed:
            self._start()
            self._changed.notify_all()

    def _poll(self, seconds: float) -> None:
        """Be told of all reports that are there, and act on them together."""
        # No name for the client here: a frame that somebody keeps would keep it alive.
        self._bursting = threading.get_ident()
        try:
            if self._leaving is not None:
                self._leaving.poll(seconds)
            elif self._client is not None:
                self._client.poll(seconds)
        finally:
            self._bursting = None
            self.told()

    def _replace(self, error: KafkaError) -> None:
        """Make a new producer; what is in the old one has an unknown outcome."""
        level = logging.DEBUG if error.code() == self._refused_for else logging.WARNING
        log.log(level, "Kafka producer is replaced after a fatal error: %s", error.str())
        self._refusing = error if error.code() in errors.DENIED else None
        self._refused_for = error.code() if self._refusing is not None else None
        self._purge()
        gone: list[Any] = []
        with self._lock:
            gone.append(self._client)
            self._client = self._making = None
            refused = self._pending.all() if self._refusing is not None else []
        denied, self._refusing = self._refusing is not None, None
        let_go(gone)
        for parcel in refused:
            self._finish(parcel, errors.publish(error, parcel.topic))
        self._rest(_REST)
        parked = Deadline.after(_PARKED)  # without a client nobody sees how the broker is
        while denied and not self._held and not parked.over and self._closing is None:
            self._rest(_SLICE)  # it would be refused again: wait for somebody who wants it
        self._make_client()

    def _renew(self, making: Making[Producer]) -> None:
        """Go over to a client that has read the certificates anew."""
        self._making = None
        try:
            client = making.client()
        except MessagingError as exc:  # half of the files may be new: the old one goes on
            self._credentials.tell(str(exc))
            return
        self._change_to(client, Deadline.after(_DRAIN))
        log.info("Kafka certificates have changed: the producer has read them anew (%s)", self._link.servers)

    def _change_to(self, client: Producer, patience: Deadline) -> None:
        """Go over to another client, or let one that was not let in begin anew: no record is lost or out of its order.

        What the old one has it sends to its end, and what comes in the meantime is held. When patience is over, or
        there is no connection any more, what it has not sent is taken back. A record whose answer was cut off is
        among that and may be stored twice: docs/decisions/0013-rotation-on-kafka.rst.
        """
        with self._lock:
            self._leaving, self._client = self._client, None
        while self._leaving and len(self._leaving) and not self._is_over():
            with suppress(KafkaException):  # a client of no use gives back what it has, too
                # What was refused goes first when it is sent again, so nothing behind it may go out before.
                if self._taken_back or patience.over or self._link.state == "disconnected":
                    self._leaving.purge(in_flight=False, blocking=False)
                self._poll(_SLICE)
            self._end_overdue()
        if self._is_over():
            self._purge()
        gone: list[Any] = []
        with self._lock:
            if self._leaving is not client:
                gone.append(self._leaving)
            self._leaving, self._client = None, client
            taken, self._taken_back = self._taken_back, []
            self._hold_first([parcel for parcel in taken if parcel in self._pending])
        let_go(gone)

    def _hold_first(self, taken: Sequence[Parcel]) -> None:
        """Hold records that a client has given back, before those that came later. The lock is held."""
        before: dict[str, list[Parcel]] = {}
        for parcel in taken:
            before.setdefault(parcel.topic, []).append(parcel)
        for topic, held in before.items():
            self._held[topic] = held + self._held.get(topic, [])

    def _rest(self, seconds: float) -> None:
        deadline = Deadline.after(seconds)
        while not deadline.over and self._closing is None:
            time.sleep(deadline.wait(_SLICE))
            self._end_overdue()

    def _refuse_held(self) -> None:
        refusal = self._link.refusal
        if refusal is not None and not self._link.connected_once:
            for topic in list(self._held):
                self._release(topic, refusal)

    def _end_overdue(self) -> None:
        with self._lock:  # taken out under it: what is told is not handed over any more
            late = [parcel for parcel in self._pending.overdue(now()) if self._pending.remove(parcel)]
            if late and self._held:
                gone = set(late)
                self._held = {
                    topic: left
                    for topic, held in self._held.items()
                    if (left := [parcel for parcel in held if parcel not in gone])
                }
        for parcel in late:
            self._tell(parcel, self._overdue(parcel))

    def _overdue(self, parcel: Parcel) -> MessagingError:
        topic = parcel.topic
        if parcel.sent:
            return errors.publish(KafkaError(KafkaError._MSG_TIMED_OUT), topic)
        if not self._link.connected_once:
            return self._link.timed_out()
        return errors.publish(KafkaError(KafkaError._PURGE_QUEUE, self._link.trouble), topic)

    def _is_over(self) -> bool:
        closing = self._closing
        return closing is not None and (closing.over or len(self._pending) == 0)

    def _purge(self) -> None:
        """Throw away what librdkafka has, with a report for each, so that nothing goes out behind our back."""
        client = self._leaving or self._client
        if client is not None and len(self._pending):
            with suppress(KafkaException):
                client.purge(blocking=False)
                self._poll(0.1)

    def _give_up(self, *, last: bool = False) -> int:
        """End all that is left; ``last``: the reports thread ends, and who sends from now on starts another."""
        gone: list[Any] = []
        with self._changed:
            left = [parcel for parcel in self._pending.all() if self._pending.remove(parcel)]
            if last:
                gone.append(self._client)
                if self._making is not None and not self._making.ended(0.0):
                    self._making.give_up()
                self._client = self._making = self._reports = None
                self._changed.notify_all()
        for parcel in left:
            self._tell(parcel, self._overdue(parcel))
        gone.clear()  # not under the lock: librdkafka waits for its own threads
        return len(left)

    def _await_end(self, deadline: Deadline) -> bool:
        with self._changed:
            while self._reports is not None or self._helper is not None:
                if deadline.over:
                    return False
                self._changed.wait(deadline.wait(0.1))
        return True

    def _run_helper(self) -> None:
        """What has to wait for an answer of the broker, while the reports go on."""
        while (task := self._next_task()) is not None:
            self._help(*task)
            owned: list[Any] = [task[0]]
            del task
            if owned[0] is self._client:
                owned.clear()
            else:  # it was replaced meanwhile, and this is its last owner
                let_go(owned)

    def _help(self, client: Producer, topic: str | None) -> None:
        try:
            if topic is None:
                client.list_topics(timeout=_PROBE)
                self._link.up()
            else:
                exists = self._topics.ensure(topic, client.list_topics, _ANSWER)
                self._release(topic, None if exists else errors.no_topic(topic))
                if topic in self._held:
                    time.sleep(_SLICE)
        except KafkaException as exc:
            error = errors.of(exc)
            if topic is None or errors.passes(error):
                self._link.trouble = error.str()
                time.sleep(_SLICE)
            else:
                self._release(topic, errors.not_made(topic, error))

    def _next_task(self) -> tuple[Producer, str | None] | None:
        with self._changed:
            task = None if self._is_over() else self._task()
            if task is None:
                self._helper = None
                self._changed.notify_all()
            return task

    def _task(self) -> tuple[Producer, str | None] | None:
        """A topic that records are held for, or none where it is only to be seen whether the broker is back."""
        topic = next(iter(self._held), None)
        if self._client is None or not self._link.connected_once:
            return None
        return (self._client, topic) if topic is not None or self._link.state == "disconnected" else None

    def _first_connection(self, deadline: Deadline) -> None:
        """For consumers: before the first connection the producer knows best what is wrong."""
        if not self._link.connected_once:
            self.connect(deadline)


def _has_answered(client: Producer) -> bool:
    """Whether a broker ever did, should its versions not be logged as `Link` knows it."""
    try:
        return bool(client.cluster_id(timeout=0))
    except KafkaException:
        return False


def _stored_at(topic: str, partition: int | None, offset: int) -> Position:
    return Position(topic=topic, partition=partition, offset=offset)


def _closed() -> BackendUnavailable:
    return BackendUnavailable("the Kafka connection is closed", code="closed", backend="kafka")
