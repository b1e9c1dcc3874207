"""The doctor's checks of a Kafka, in their order; docs/doctor.rst has the same table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from incident_messaging import doctor
from incident_messaging.backends.kafka import findings
from incident_messaging.backends.kafka.checkup import Checkup
from incident_messaging.doctor import Check, Finding


def _each(judge: Callable[..., Iterator[Finding]]) -> Callable[[Checkup], Iterator[Finding]]:
    return lambda checkup: checkup.look_at_each_topic(judge)


#: In their order.
CHECKS: Final = (
    Check(
        name="server",
        asks="Whether a connection comes about as configured, and each of kafka.bootstrap_servers takes one",
        why="without a connection nothing is published or handled; a server that is away is one less to begin with",
        look=Checkup.look_at_servers,
    ),
    Check(
        name="client library",
        asks="The version of confluent-kafka against those that are tested",
        why="an untested version may behave otherwise where a promise rests on it",
        look=lambda _checkup: doctor.client_library("confluent-kafka"),
    ),
    Check(
        name="version",
        asks="The broker's version; 3.5 or later is needed",
        why="older brokers lack requests that the SDK makes",
        look=Checkup.look_at_version,
        needs=("server",),
    ),
    Check(
        name="listeners",
        asks="Whether the addresses that brokers give to clients (advertised.listeners) take a connection from here",
        why="clients go on by these addresses, whatever they began with",
        look=Checkup.look_at_listeners,
        needs=("server",),
    ),
    Check(
        name="topic",
        asks="Whether each topic exists, and that of the dead letters; or is made at the first use",
        why="nothing can be published to a topic that is missing, or stored that was given up",
        look=Checkup.look_at_topics,
        needs=("listeners",),
    ),
    Check(
        name="right to publish",
        asks="Whether the user may write to the topics",
        why="a publish ends with PublishFailed (denied)",
        look=Checkup.look_at_publishing,
        needs=("listeners",),
    ),
    Check(
        name="right to subscribe",
        asks="Whether the user may read the topics, keep a place as the group, and write dead letters",
        why="a subscription ends with SubscribeFailed (denied), or messages that failed stay where they are",
        look=Checkup.look_at_subscribing,
        needs=("listeners",),
    ),
    Check(
        name="right to create",
        asks="Whether a topic that is missing would be made, with kafka.partitions and kafka.replication_factor",
        why="the first publish or subscription fails",
        look=Checkup.look_at_creating,
        needs=("listeners",),
    ),
    Check(
        name="settings",
        asks="Whether the settings of topics and brokers can be read, for the checks that follow",
        why="what cannot be read is not checked",
        look=Checkup.look_at_settings,
        needs=("listeners",),
    ),
    Check(
        name="replicas",
        asks="Copies of each topic against kafka.replication_factor and the cluster; leaders; copies out of sync",
        why="with one copy, what was acknowledged is lost with its broker's disk",
        look=_each(findings.replicas),
        needs=("listeners",),
    ),
    Check(
        name="min.insync.replicas",
        asks="min.insync.replicas of each topic against its copies, and those in sync",
        why="a publish has succeeded when so many copies have it; with fewer in sync it is refused",
        look=_each(findings.in_sync),
        needs=("settings",),
    ),
    Check(
        name="keeping",
        asks="cleanup.policy, retention.bytes and unclean.leader.election.enable of each topic",
        why="what a group has not read is lost in silence",
        look=_each(findings.keeping),
        needs=("settings",),
    ),
    Check(
        name="message time",
        asks="message.timestamp.before/after.max.ms of each topic against publish_timeout_ms and clocks that differ",
        why="a publish is refused whose time is further from the broker's",
        look=_each(findings.times),
        needs=("settings",),
    ),
    Check(
        name="message size",
        asks="max.message.bytes of each topic against max_message_size, and the batches that small messages go in",
        why="a message of a size that the configuration allows is refused; a dead letter of that size is never stored",
        look=_each(findings.sizes),
        needs=("settings",),
    ),
    Check(
        name="retention",
        asks="retention.ms of each topic against the time that retries may take, and a day",
        why="retention deletes unread messages, too",
        look=_each(findings.age),
        needs=("settings",),
    ),
    Check(
        name="lag",
        asks="The age of each group's oldest unread message against retention.ms; messages that were deleted unread",
        why="what a group has not read is lost in silence",
        look=Checkup.look_at_lag,
        needs=("settings",),
    ),
    Check(
        name="session time-out",
        asks="kafka.session_timeout_ms against what brokers allow (group.min/max.session.timeout.ms)",
        why="no group can be joined with another one",
        look=Checkup.look_at_sessions,
        needs=("settings",),
    ),
    Check(
        name="places",
        asks="offsets.retention.minutes of the brokers against retention.ms of the topics",
        why="a group that nobody was in for so long has no place, and begins anew",
        look=Checkup.look_at_places,
        needs=("settings",),
    ),
    Check(
        name="clock",
        asks="The broker's clock against that of this machine (--probe)",
        why="times of messages, retention, start=datetime, tokens and certificates are off by as much",
        look=Checkup.look_at_clock,
        needs=("listeners",),
    ),
)
