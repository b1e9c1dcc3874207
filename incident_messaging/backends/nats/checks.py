"""The doctor's checks of a NATS server, in their order; docs/doctor.rst has the same table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from incident_messaging import doctor
from incident_messaging.backends.nats import findings
from incident_messaging.backends.nats.checkup import Checkup
from incident_messaging.doctor import Check, Finding


def _each(judge: Callable[..., Iterator[Finding]]) -> Callable[[Checkup], Iterator[Finding]]:
    return lambda checkup: checkup.look_at_each_stream(judge)


_LOSES = "what a group has not read is lost in silence"

#: In their order.
CHECKS: Final = (
    Check(
        name="server",
        asks="Whether a connection comes about as configured, and then to each of nats.servers",
        why="without a connection nothing is published or handled; a server that is away is one less to fail over to",
        look=Checkup.look_at_servers,
    ),
    Check(
        name="client library",
        asks="The version of nats-py against those that are tested",
        why="an untested version may break what the SDK mends in it",
        look=lambda _checkup: doctor.client_library("nats-py"),
    ),
    Check(
        name="version",
        asks="The server's version; 2.10 or later is needed",
        why="older servers lack what consumers and dead letters rest on",
        look=Checkup.look_at_version,
        needs=("server",),
    ),
    Check(
        name="max_payload",
        asks="max_payload of the server against max_message_size",
        why="a message of a size that the configuration allows is refused at publish",
        look=Checkup.look_at_payload,
        needs=("server",),
    ),
    Check(
        name="jetstream",
        asks="Whether JetStream is on for the account, and tells which streams there are",
        why="delivery at least once needs a stream",
        look=Checkup.look_at_jetstream,
        needs=("server",),
    ),
    Check(
        name="right to publish",
        asks="Whether the user may publish to the topics",
        why="a publish ends with PublishFailed (denied)",
        look=Checkup.look_at_publishing,
        needs=("jetstream",),
    ),
    Check(
        name="right to subscribe",
        asks="Whether the user may make consumers, fetch, acknowledge, and write dead letters",
        why="a subscription ends with SubscribeFailed (denied), or messages that failed stay where they are",
        look=Checkup.look_at_subscribing,
        needs=("jetstream",),
    ),
    Check(
        name="right to create",
        asks="Whether the user may make the stream and the bucket that are missing",
        why="the first publish or subscription fails",
        look=Checkup.look_at_creating,
        needs=("jetstream",),
    ),
    Check(
        name="stream",
        asks="Whether a stream keeps each topic, and that of the dead letters; or can be made, without an overlap",
        why="nothing is kept of a topic without a stream",
        look=Checkup.look_at_streams,
        needs=("jetstream",),
    ),
    Check(
        name="replicas",
        asks="Copies of each stream against nats.stream_replicas and the cluster; a leader; copies that are behind",
        why="with one copy, what was acknowledged is lost with its server's disk",
        look=_each(findings.replicas),
        needs=("jetstream",),
    ),
    Check(
        name="keeping",
        asks="Each stream's retention, storage, discard policy, no_ack, sealed, limits by number and size, deny_delete",
        why=_LOSES,
        look=_each(findings.keeping),
        needs=("jetstream",),
    ),
    Check(
        name="message size",
        asks="max_msg_size of each stream against max_message_size",
        why="a message of a size that the configuration allows is refused, and no dead letter of that size is stored",
        look=_each(findings.sizes),
        needs=("jetstream",),
    ),
    Check(
        name="room",
        asks="How full each stream is that refuses when it is full; max_consumers; the room that the account has left",
        why="a full stream refuses every message (stream_full), and a group that would be one too many is refused",
        look=Checkup.look_at_room,
        needs=("jetstream",),
    ),
    Check(
        name="retention",
        asks="max_age of each stream against nats.stream_max_age_secs and the time that retries may take",
        why="age deletes unread messages, too",
        look=_each(findings.age),
        needs=("jetstream",),
    ),
    Check(
        name="duplicate window",
        asks="The duplicate window of each stream against the time within which a message may be sent again",
        why="what is sent again later than that is stored twice",
        look=_each(findings.duplicates),
        needs=("jetstream",),
    ),
    Check(
        name="ack_wait",
        asks="ack_wait, max_deliver, headers_only, pauses and the other settings of each group's durable",
        why="a durable is never changed by the SDK; one that was made otherwise repeats, loses or holds up messages",
        look=Checkup.look_at_groups,
        needs=("jetstream",),
    ),
    Check(
        name="lag",
        asks="The age of each group's oldest unread message against max_age; messages that were deleted unread",
        why=_LOSES,
        look=Checkup.look_at_lag,
        needs=("jetstream",),
    ),
    Check(
        name="handler time",
        asks="How long handlers take, as a worker's metrics tell (--metrics-url), against ack_wait",
        why="in_progress alone, which the same process sends, keeps a message then; when it pauses, another gets it",
        look=Checkup.look_at_handlers,
        needs=("jetstream",),
    ),
    Check(
        name="clock",
        asks="The server's clock against that of this machine",
        why="times of messages, start=datetime, tokens and certificates are off by as much",
        look=Checkup.look_at_clock,
        needs=("jetstream",),
    ),
)
