"""What the doctor asks a NATS server: connects as configured, and reads. What the answers mean is in `findings`.

Rights are tried by messages that the server takes only for a trace (ADR-41: ``Nats-Trace-Only``): it checks them
against the user's permissions and then drops them, so they reach no subscriber, no stream and no part of JetStream.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from incident_messaging import doctor
from incident_messaging.backends.nats import findings, group_findings, rights
from incident_messaging.backends.nats.client import Client
from incident_messaging.backends.nats.connection import Connection
from incident_messaging.backends.nats.dial import ADDRESS_SECS, dial, hang_up
from incident_messaging.backends.nats.options import Refusal, bare
from incident_messaging.backends.nats.streams import DENIED, STREAM_NOT_FOUND, Api, ApiError, Streams
from incident_messaging.backends.nats.wire import publish_command, unix
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.doctor import Finding, Scope, broken, not_done, ok, warning
from incident_messaging.errors import BackendUnavailable, ConfigurationError, ConnectionFailed, MessagingError, Timeout
from incident_messaging.eventloop import EventLoop
from incident_messaging.handler_times import handler_times
from incident_messaging.topics import is_pattern

#: The first server that knows messages for a trace alone; an older one would deliver them.
_TRACES: Final = (2, 11)
#: Where the traces go: a subject that everybody needs who uses JetStream, and one that drops what asks for no answer.
_NAMES: Final = "$JS.API.STREAM.NAMES"
_TRACE_ONLY: Final = f"NATS/1.0\r\nNats-Trace-Dest: {_NAMES}\r\nNats-Trace-Only: true\r\n\r\n".encode()
#: What a check understands of JetStream's refusals: not allowed, no such stream, no such message.
_TOLD: Final = frozenset({DENIED, STREAM_NOT_FOUND, 10_037, 10_057})
#: Seconds for the farewell.
_FAREWELL: Final = 0.5


class Checkup(doctor.Checkup):
    """See `doctor.Checkup`.

    Attributes:
        streams: The streams that keep the topics, as ``STREAM.INFO`` tells of them.
        consumers: The durables of the SDK's groups on them, as ``CONSUMER.LIST`` tells; ``None`` where it may not.
        times: The server's time when it told of a stream, between two of ours.
    """

    def __init__(self, config: MessagingConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.streams: dict[str, dict[str, Any]] = {}
        self.consumers: list[dict[str, Any]] | None = []
        self.times: tuple[float, float, float] | None = None
        self._names: dict[str, list[str]] = {}
        self._loop = EventLoop("incident-messaging-loop")
        self._connection = Connection(config)
        self._connection.attach(self)
        self._api = Api(self._connection)
        self._streams = Streams(self._api, self._connection, config)
        self._denied: set[str] = set()

    @property
    def topics(self) -> Sequence[str]:
        """The topics and patterns that are asked about, and that of the dead letters where it is written to."""
        return list(dict.fromkeys([*self.used, *filter(None, [self.dead_letters])]))

    @property
    def info(self) -> dict[str, Any]:
        """What the server said about itself."""
        return self._connection.server_info

    def explain(self, error: MessagingError) -> Finding:
        """See `doctor.Checkup.explain`."""
        return findings.of_error(error, self.config.nats)

    def close(self) -> None:
        """See `doctor.Checkup.close`."""
        if self._loop.started:
            end = Deadline.after(_FAREWELL)
            with suppress(MessagingError):
                self._loop.run(lambda: self._connection.close(end), Deadline.after(2 * _FAREWELL), "closing NATS")
            self._loop.stop(Deadline.after(_FAREWELL))

    # A rider of the connection.

    def up(self) -> None:
        """See `connection.Rider`."""

    def down(self) -> None:
        """See `connection.Rider`."""

    def denied(self, action: str, subject: str) -> None:
        """Keep in mind what was refused; see `connection.Rider`."""
        if action == "publish":
            self._denied.add(subject)

    def gave_up(self, error: MessagingError) -> None:
        """See `connection.Rider`."""

    # Questions.

    def ask(self, request: str, **fields: Any) -> dict[str, Any]:
        """An answer of JetStream.

        Raises:
            ApiError: The user may not ask that (``DENIED``), or what it is about is not there.
            BackendUnavailable: JetStream refused it for another reason.
            Timeout: It did not answer.
        """
        patience = self.config.nats.request_timeout_ms / 1000
        try:
            return self._loop.run(lambda: self._api.ask(request, **fields), Deadline.after(patience), request)
        except Timeout as exc:
            raise Timeout(f"JetStream does not answer {request} within {patience:g} s", backend="nats") from exc
        except ApiError as exc:
            if exc.code in _TOLD:
                raise
            raise BackendUnavailable(f"JetStream refused {request}: {exc}", backend="nats") from exc

    def refused(self, subjects: Sequence[str]) -> list[str]:
        """Which of the subjects the user may not publish to; nothing is delivered or stored."""
        self._denied.clear()
        commands = b"".join(publish_command(subject, "", _TRACE_ONLY, b"") for subject in subjects)

        async def try_them() -> bool:
            self._connection.write(commands)
            return await self._connection.barrier()

        if not self._loop.run(try_them, Deadline.after(self.config.nats.request_timeout_ms / 1000), "trying rights"):
            raise ConnectionFailed(f"NATS connection failed: {self._connection.error}", backend="nats")
        return [subject for subject in subjects if subject.lower() in self._denied]

    def names(self, topic: str) -> list[str]:
        """The streams that keep a topic, or the name of the one that would be made."""
        found = self._names.get(topic) or []
        wanted = self._streams.wanted(topic)
        return found or ([wanted[0]] if wanted else [])

    # Checks, in their order.

    def look_at_servers(self) -> Iterator[Finding]:
        """The connection as configured, then each address by itself."""
        patience = self.config.connect_timeout_ms / 1000
        deadline, grace = Deadline.after(patience), Deadline.after(patience + 0.1)
        self._loop.run(lambda: self._connection.until_up(deadline), grace, "connecting to NATS")
        servers = self.config.nats.servers
        yield ok(f"connected, to {self.info.get('server_name')} of {', '.join(map(bare, servers))}")
        for url in servers if len(servers) > 1 else ():
            no = self._loop.run(partial(self._dial, url), Deadline.after(2 * ADDRESS_SECS), f"connecting to {url}")
            if no is not None:
                yield warning(f"one of the servers is of no use: {no}", findings.reach(no.code, self.config.nats, url))

    async def _dial(self, url: str) -> Refusal | None:
        asked = await dial(self.config.nats, url, ADDRESS_SECS, lambda: None, self._connection.inbox)
        if not isinstance(asked, Client):
            return asked
        await hang_up(asked, 0.0)
        return None

    def look_at_version(self) -> Iterator[Finding]:
        """The server's; one that is too old was refused at the connection."""
        yield ok(f"nats-server {self.info.get('version')}; 2.10 or later is needed")

    def look_at_payload(self) -> Iterator[Finding]:
        """What the server takes."""
        yield from findings.payload(self.config, int(self.info.get("max_payload", 0)))

    def look_at_jetstream(self) -> Iterator[Finding]:
        """Whether it is there for this account, and which streams keep the topics."""
        if self.config.nats.delivery == "core":
            yield not_done("nats.delivery is core: nothing is kept, and delivery is at most once")
            return
        try:
            for topic in self.topics:
                self._names[topic] = [name for name in self._find(topic) if not name.startswith("KV_")]
        except ApiError as exc:
            yield broken(f"the user may not ask which streams there are: {exc}", findings.allow(_NAMES))
            return
        except BackendUnavailable as exc:
            yield broken(str(exc), findings.JETSTREAM)
            return
        yield ok("JetStream is on for this account")

    def _find(self, topic: str) -> list[str]:
        return sorted(self.ask("STREAM.NAMES", subject=topic).get("streams") or ())

    def look_at_publishing(self) -> Iterator[Finding]:
        """Whether the user may publish."""
        if not self.scope.publishes:
            return
        if (why := self._cannot_try()) is not None:
            yield why
            return
        subjects = {rights.one_of(topic): topic for topic in self.used}
        refused = self.refused(list(subjects))
        for topic in (subjects[subject] for subject in refused):
            if is_pattern(topic):
                remedy = (
                    f"incident-messaging doctor --topic TOPIC for each that is published to, or {findings.allow(topic)}"
                )
                yield warning(f"the user may not publish to every topic of {topic}", remedy)
            else:
                yield broken(f"the user may not publish to {topic}", findings.allow(topic))
        if not refused:
            yield ok(f"the user may publish to {', '.join(self.used)}")

    def look_at_subscribing(self) -> Iterator[Finding]:
        """Whether the user may do what a subscription does."""
        if not self.scope.subscribes:
            return
        if (why := self._cannot_try()) is not None:
            yield why
            return
        needed: dict[str, str] = {}
        for topic in self.used:
            needed |= rights.for_subscribing(self.config, topic, self.names(topic))
        wished = rights.welcome({name for topic in self.used for name in self.names(topic)})
        refused = self.refused([*needed, *wished])
        for subject in refused:
            if subject in needed:
                yield broken(f"the user may not publish to {subject}", findings.allow(needed[subject]))
            else:
                rule, without = wished[subject]
                yield warning(f"the user may not publish to {subject}", findings.allow(rule), without)
        if not refused:
            yield ok(f"the user may subscribe to {', '.join(self.used)}")

    def look_at_creating(self) -> Iterator[Finding]:
        """Whether what is missing may be made."""
        if (why := self._cannot_try()) is not None:
            yield why
            return
        uncovered = [topic for topic in self.topics if not self._names[topic]]
        missing = {wanted[0] for topic in uncovered if (wanted := self._streams.wanted(topic))}
        if self.scope.subscribes and not self._has_bucket():
            missing.add(rights.BUCKET_STREAM)
        if not missing:
            yield ok("nothing has to be made")
        elif not self.config.nats.create_streams:
            yield findings.not_made(missing, rights.BUCKET_STREAM)
        else:
            refused = self.refused([f"$JS.API.STREAM.CREATE.{name}" for name in sorted(missing)])
            for subject in refused:
                found = warning if subject.endswith(rights.BUCKET_STREAM) else broken
                yield found(f"the user may not make what is missing: {subject}", findings.allow(subject))
            if not refused:
                yield ok(f"the user may make what is missing: {', '.join(sorted(missing))}")

    def _has_bucket(self) -> bool:
        try:
            self.ask(f"STREAM.INFO.{rights.BUCKET_STREAM}")
        except ApiError as exc:
            return exc.code == DENIED  # told of by another check
        return True

    def _cannot_try(self) -> Finding | None:
        """Why rights cannot be tried without doing what they allow."""
        version = str(self.info.get("version", ""))
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < _TRACES:
            return warning(
                f"not looked at: nats-server {version} cannot try a right without delivering a message",
                "nats-server 2.11 or later; or publish and subscribe as the service does",
            )
        return None

    def look_at_streams(self) -> Iterator[Finding]:
        """Whether the topics are kept, and then all that the next checks ask about."""
        for topic in self.topics:
            if names := self._names[topic]:
                yield ok(f"{topic} is kept by {', '.join(names)}")
            else:
                yield self._uncovered(topic)
        try:
            for name in sorted({name for names in self._names.values() for name in names}):
                before = time.time()
                self.streams[name] = answer = self.ask(f"STREAM.INFO.{name}")
                if "ts" in answer:
                    self.times = unix(answer["ts"]), before, time.time()
        except ApiError as exc:
            yield warning(f"streams are not looked at: {exc}", findings.allow(f"$JS.API.STREAM.INFO.{name}"))

    def _uncovered(self, topic: str) -> Finding:
        wanted = self._streams.wanted(topic)
        if wanted is None:
            return not_done(f"{topic}: a stream's name is not known without a prefix")
        name, subjects = wanted
        others = sorted({other for subject in subjects for other in self._find(subject)} - {name})
        if others:
            return findings.overlap(topic, name, subjects, others)
        try:
            there = self.ask(f"STREAM.INFO.{name}")
        except ApiError:
            there = None
        return findings.uncovered(topic, name, subjects, there, self.config.nats)

    def look_at_each_stream(self, judge: Callable[..., Iterator[Finding]]) -> Iterator[Finding]:
        """What the answers about each stream mean."""
        if not self.streams:
            yield not_done("there is no stream to look at")
        for name, info in self.streams.items():
            yield from judge(self.config, name, info, self.info)

    def look_at_room(self) -> Iterator[Finding]:
        """What is left of each stream's limits, and of the account's."""
        yield from self.look_at_each_stream(findings.room)
        try:
            yield from findings.account(self.ask("INFO"))
        except ApiError as exc:
            yield warning(f"the account's limits are not looked at: {exc}", findings.allow("$JS.API.INFO"))

    def look_at_groups(self) -> Iterator[Finding]:
        """The durables of the SDK's groups: what was set when they were made counts for ever."""
        if not self.streams:
            self.consumers = None
            yield not_done("there is no stream to look at")
            return
        try:
            self.consumers = [each for name in self.streams for each in self._durables(name)]
        except ApiError as exc:
            self.consumers = None
            rule = findings.allow(f"$JS.API.CONSUMER.LIST.{next(iter(self.streams))}")
            yield warning(f"groups are not looked at: {exc}", rule)
            return
        if not self.consumers:
            yield ok("no group has a place yet")
        for each in self.consumers:
            yield from group_findings.group(self.config, each, self.streams[each["stream_name"]])

    def _durables(self, stream: str) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            answer = self.ask(f"CONSUMER.LIST.{stream}", offset=offset)
            page = answer.get("consumers") or ()
            yield from (each for each in page if group_findings.is_ours(each))
            offset += len(page)
            if not page or offset >= answer["total"]:
                return

    def look_at_lag(self) -> Iterator[Finding]:
        """How much of a stream's age the oldest unread message of a group has behind it."""
        if self.consumers is None:
            yield not_done("groups were not looked at")
            return
        for each in self.consumers:
            if (lost := group_findings.passed_over(each, self.streams[each["stream_name"]])) is not None:
                yield lost
            elif each["num_pending"] or each["num_ack_pending"]:
                yield self._oldest(each)
            else:
                yield ok(f"{each['name']} has read all")
        if not self.consumers:
            yield ok("no group has anything to read")

    def _oldest(self, consumer: dict[str, Any]) -> Finding:
        stream, first = consumer["stream_name"], consumer["ack_floor"]["stream_seq"] + 1
        subject = consumer["config"].get("filter_subject", ">")
        try:
            oldest = self.ask(f"STREAM.MSG.GET.{stream}", seq=first, next_by_subj=subject)["message"]
        except ApiError as exc:
            if exc.code == DENIED:
                rule = findings.allow(f"$JS.API.STREAM.MSG.GET.{stream}")
                return warning(f"how old the unread messages are is not known: {exc}", rule)
            return ok(f"{consumer['name']} has read all")
        return group_findings.lag(consumer, self.streams[stream], unix(oldest["time"]))

    def look_at_handlers(self) -> Iterator[Finding]:
        """How long handlers take, as a worker has measured it, and how long the server waits for them."""
        if self.scope.metrics_url is None:
            yield not_done(
                "not asked for", "incident-messaging doctor --metrics-url http://HOST:PORT/metrics of a worker"
            )
            return
        try:
            times = handler_times(self.scope.metrics_url, "nats")
        except ConfigurationError as exc:
            yield warning(str(exc), "incident-messaging worker MODULE:SERVICE --port PORT serves them")
            return
        yield from group_findings.handlers(self.config, times, self.consumers or [])

    def look_at_clock(self) -> Iterator[Finding]:
        """The server's time as it told of a stream."""
        if self.times is None:
            yield not_done("the server tells its time with a stream, and there is none to look at")
        else:
            yield doctor.clock("the NATS server", *self.times)
