"""What the doctor's checks make of a Kafka's answers. Pure.

Commands are Kafka's own (https://kafka.apache.org/documentation/#basic_ops).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from time import time
from typing import Any

import attrs
from confluent_kafka import KafkaError, TopicPartition

from incident_messaging.backends.kafka import errors, settings
from incident_messaging.config import KafkaConfig, MessagingConfig
from incident_messaging.doctor import (
    CLOCKS_APART_SECS,
    HALF,
    Finding,
    broken,
    not_done,
    ok,
    resend_secs,
    retries_secs,
    spoken,
    warning,
)
from incident_messaging.errors import MessagingError

#: Seconds that a topic should keep messages at least: a night's outage.
_A_DAY = 86_400.0
#: Beyond so many seconds a group's place need not be kept: nobody comes back.
_A_WEEK = 7 * _A_DAY


@attrs.frozen(kw_only=True)
class Topic:
    """A topic as Kafka describes it.

    Attributes:
        name: Its name.
        partitions: How many partitions it has.
        copies: Of how many copies the partition has that has the fewest.
        in_sync: How many copies are in sync where the fewest are.
        leaderless: Partitions without a leader.
        rights: What the user may do with it.
        settings: Its settings, with the broker's defaults; empty where they cannot be read.
    """

    name: str
    partitions: int
    copies: int
    in_sync: int
    leaderless: int = 0
    rights: frozenset[str] = frozenset()
    settings: dict[str, str] = attrs.field(factory=dict)


# Commands.


def host_and_port(server: str) -> tuple[str, int]:
    """An address of ``bootstrap_servers``."""
    bare = server.strip().rpartition("://")[2]
    host, colon, port = bare.rpartition(":")
    return (host.strip("[]"), int(port)) if colon and port.isdigit() else (bare.strip("[]"), 9092)


def _tool(kafka: KafkaConfig, name: str, *, user: str = "admin") -> str:
    server = kafka.bootstrap_servers.split(",")[0].strip()
    secured = f" --command-config {user}.properties" if kafka.enable_ssl or kafka.enable_sasl else ""
    return f"kafka-{name}.sh --bootstrap-server {server}{secured}"


@attrs.frozen
class Acls:
    """The commands that grant rights to the user of a configuration."""

    kafka: KafkaConfig

    def topic(self, operation: str, name: str) -> str:
        """A right to a topic."""
        return f"{self._add(operation)} --topic {name}"

    def group(self, operation: str, name: str) -> str:
        """A right to a group."""
        return f"{self._add(operation)} --group {name}"

    def cluster(self, operation: str) -> str:
        """A right to the cluster."""
        return f"{self._add(operation)} --cluster"

    def _add(self, operation: str) -> str:
        user = f"User:{self.kafka.sasl_username or 'NAME'}"
        return f"{_tool(self.kafka, 'acls')} --add --allow-principal {user} --operation {operation}"


def change(config: MessagingConfig, topic: str, setting: str, value: object) -> str:
    """The command that changes a topic's setting."""
    return (
        f"{_tool(config.kafka, 'configs')} --alter --entity-type topics --entity-name {topic} "
        f"--add-config {setting}={value}"
    )


def create(config: MessagingConfig, topic: str) -> str:
    """The command that makes a topic as the SDK would."""
    kafka = config.kafka
    partitions = f" --partitions {kafka.partitions}" if kafka.partitions else ""
    copies = f" --replication-factor {kafka.replication_factor}" if kafka.replication_factor else ""
    return f"{_tool(kafka, 'topics')} --create --topic {topic}{partitions}{copies}; or kafka.create_topics = true"


def delete(kafka: KafkaConfig, topic: str) -> str:
    """The command that deletes a topic."""
    return f"{_tool(kafka, 'topics')} --delete --topic {topic}"


# Connections and rights.


def of_error(error: MessagingError, kafka: KafkaConfig) -> Finding:
    """An error that a check has met, as the SDK says it."""
    server = kafka.bootstrap_servers.split(",")[0].strip()
    ask = f"{_tool(kafka, 'broker-api-versions', user='client')}"
    authority = f" -CAfile {kafka.ssl_ca_file}" if kafka.ssl_ca_file else ""
    remedies = {
        "unreachable": f"{ask}; start the broker, or correct kafka.bootstrap_servers",
        "unauthorized": f"{ask}; correct kafka.enable_sasl, sasl_mechanism, user and password",
        "tls": f"openssl s_client -connect {server}{authority}; correct kafka.enable_ssl or kafka.ssl_ca_file",
        "invalid": "the setting or the file that the text names; or a newer broker",
    }
    return broken(str(error), remedies.get(error.code, ask))


def listener(number: int, host: str, port: int, why: str) -> Finding:
    """An address that a broker gives to clients, and that is of no use here."""
    return broken(
        f"broker {number} tells clients to come by {host}:{port}: {why}",
        f"advertised.listeners in server.properties of broker {number}, with an address that clients reach; "
        f"nc -vz {host} {port}",
    )


def not_made(config: MessagingConfig, error: KafkaError, topic: str, brokers: int, *, needed: bool) -> Finding:
    """A topic that would not be made; whether it is ``needed``, or stands for those to come."""
    found = broken if needed else warning
    what = topic if needed else "a topic that is missing"
    if error.code() in errors.DENIED:
        name = (
            topic if needed or not config.topic_prefix else f"{config.topic_prefix}. --resource-pattern-type prefixed"
        )
        grant = Acls(config.kafka).topic("Create", name)
        return found(f"the user may not make {what}", f"{grant}; or kafka.create_topics = false")
    return found(f"{what} would not be made: {error.str()}", _makeable(config.kafka, error, brokers))


def _makeable(kafka: KafkaConfig, error: KafkaError, brokers: int) -> str:
    """What lets a topic be made that Kafka would not make."""
    if error.code() == KafkaError.INVALID_REPLICATION_FACTOR:
        copies = kafka.replication_factor
        more = f"{copies} brokers" if copies else "default.replication.factor in server.properties of every broker"
        return f"kafka.replication_factor = {brokers}; or {more}"
    if error.code() == KafkaError.INVALID_PARTITIONS:
        return "kafka.partitions = 1, or as many as the text allows"
    return "what the text names; or a topic that is made by who may, and kafka.create_topics = false"


# Topics.


def replicas(config: MessagingConfig, topic: Topic, checkup: Any) -> Iterator[Finding]:
    """Copies of a topic, and whether all of them are there."""
    wanted, brokers = config.kafka.replication_factor, max(len(checkup.brokers), 1)
    mend = _more_copies(config.kafka, topic, wanted or 3, list(checkup.brokers))
    mend += f"; or kafka.replication_factor = {topic.copies}, if that is meant"
    if topic.leaderless:
        what = f"{topic.name}: {topic.leaderless} partitions have no leader: nothing is stored or handed out"
        yield broken(what, f"{_tool(config.kafka, 'topics')} --describe --topic {topic.name}; start their brokers")
    elif topic.in_sync < topic.copies:
        what = f"{topic.name}: {topic.in_sync} of {topic.copies} copies are in sync"
        yield warning(
            what, f"{_tool(config.kafka, 'topics')} --describe --under-replicated-partitions; start their brokers"
        )
    if wanted is not None and topic.copies < wanted:
        yield warning(f"{topic.name}: {topic.copies} copies, configured are {wanted}", mend)
    elif wanted is None and topic.copies == 1 and brokers > 1:
        yield warning(f"{topic.name}: one copy, on a cluster of {brokers}", mend)
    elif wanted is None and topic.copies == 1:
        yield warning(f"{topic.name}: one copy, on one broker", mend)
    else:
        yield ok(f"{topic.name}: copies {topic.copies}")


def _more_copies(kafka: KafkaConfig, topic: Topic, wanted: int, brokers: Sequence[int]) -> str:
    """How a topic comes to so many copies."""
    if len(brokers) < wanted:
        there = "is 1" if len(brokers) < 2 else f"are {len(brokers)}"
        return f"a cluster of {wanted} brokers, of which there {there}"
    first = {"topic": topic.name, "partition": 0, "replicas": sorted(brokers)[:wanted]}
    plan = json.dumps({"version": 1, "partitions": [first]})
    others = f", and so on for each of its {topic.partitions} partitions" if topic.partitions > 1 else ""
    return (
        f"{_tool(kafka, 'reassign-partitions')} --reassignment-json-file PLAN.json --execute; "
        f"with PLAN.json: {plan}{others}"
    )


def in_sync(config: MessagingConfig, topic: Topic, checkup: Any) -> Iterator[Finding]:
    """How many copies a publish is acknowledged by."""
    # With two copies no number is good: either one broker is too few, or both are needed.
    third = f"a third copy: {_more_copies(config.kafka, topic, 3, list(checkup.brokers))}" if topic.copies == 2 else ""
    least = int(topic.settings.get("min.insync.replicas", 1))
    what = f"{topic.name}: min.insync.replicas is {least}, copies {topic.copies}, in sync {topic.in_sync}"
    if topic.in_sync < min(least, topic.copies):
        remedy = f"{_tool(config.kafka, 'topics')} --describe --under-min-isr-partitions; start their brokers"
        yield broken(f"{what}: every publish is refused", remedy)
    elif least > topic.copies:
        remedy = change(config, topic.name, "min.insync.replicas", max(1, topic.copies - 1))
        yield broken(
            f"{what}: brokers before Kafka 4 refuse every publish, later ones as soon as one copy is away", remedy
        )
    elif 1 < least == topic.copies:
        remedy = third or change(config, topic.name, "min.insync.replicas", topic.copies - 1)
        yield warning(f"{what}: when one broker is away, every publish is refused", remedy)
    elif least < 2 <= topic.copies:
        then = change(config, topic.name, "min.insync.replicas", max(2, topic.copies - 1))
        remedy = f"{third}; then {then}" if third else then
        yield warning(f"{what}: what a single broker has counts as acknowledged, and is lost with it", remedy)
    else:
        yield ok(what)


def keeping(config: MessagingConfig, topic: Topic, _checkup: Any) -> Iterator[Finding]:
    """Whether a topic keeps each message until its time ends."""
    found, policy, most = [], topic.settings.get("cleanup.policy", ""), int(topic.settings.get("retention.bytes", -1))
    if "compact" in policy:
        what = (
            f"{topic.name}: cleanup.policy is {policy}: a publish without a key is refused, and of the messages with "
            "one key only the last stays"
        )
        found.append(broken(what, change(config, topic.name, "cleanup.policy", "delete")))
    if most >= 0:
        what = f"{topic.name}: retention.bytes is {most:,}: beyond that messages are deleted, read or not"
        found.append(warning(what, change(config, topic.name, "retention.bytes", -1)))
    if topic.settings.get("unclean.leader.election.enable") == "true":
        what = f"{topic.name}: unclean.leader.election.enable: a copy that misses acknowledged messages may take over"
        found.append(warning(what, change(config, topic.name, "unclean.leader.election.enable", "false")))
    yield from found or [ok(f"{topic.name} keeps what it acknowledges, by time")]


def times(config: MessagingConfig, topic: Topic, _checkup: Any) -> Iterator[Finding]:
    """How far a message's time, which is that of its publish, may be from the broker's."""
    if topic.settings.get("message.timestamp.type") == "LogAppendTime":
        yield ok(f"{topic.name}: the time of a message is the broker's")
        return
    waits, found = resend_secs(config) + CLOCKS_APART_SECS, []
    for which, needed in (("before", waits), ("after", CLOCKS_APART_SECS)):
        # Kafka before 3.6 has one setting for both; until 4.0 it counts beside them.
        names = (f"message.timestamp.{which}.max.ms", "message.timestamp.difference.max.ms")
        given = {name: int(topic.settings[name]) / 1000 for name in names if topic.settings.get(name)}
        name = min(given, key=lambda each: given[each], default="")
        if not name or given[name] >= needed:
            continue
        what = f"{topic.name}: {name} is {spoken(given[name])}, and a publish may be {spoken(needed)} off"
        judge = broken if given[name] < CLOCKS_APART_SECS and which == "before" else warning
        found.append(judge(what, change(config, topic.name, name, max(3_600_000, ceil(1000 * needed)))))
    yield from found or [ok(f"{topic.name} takes messages whose time is off by {spoken(waits)}")]


def sizes(config: MessagingConfig, topic: Topic, _checkup: Any) -> Iterator[Finding]:
    """``max.message.bytes`` of a topic against what is sent to it, of which a client is told nothing before."""
    most, message, batch = int(topic.settings["max.message.bytes"]), config.max_message_size, batch_bytes(config)
    if most >= max(message, batch):
        yield ok(f"{topic.name}: max.message.bytes is {most:,}, max_message_size {message:,}")
        return
    mend = change(config, topic.name, "max.message.bytes", max(message, batch))
    if most >= message:
        what = f"{topic.name}: max.message.bytes is {most:,}, and small messages go in batches of up to {batch:,} bytes"
        yield warning(
            what,
            f'{mend}; or kafka.extra = {{"batch.size": {most - settings.BATCH_HEAD}}}',
            "the whole batch is refused",
        )
        return
    what = f"{topic.name}: max.message.bytes is {most:,}, max_message_size {message:,}"
    yield broken(what, f"{mend}; or max_message_size = {most}")


def batch_bytes(config: MessagingConfig) -> int:
    """What a batch of messages may have."""
    return min(int(config.kafka.extra.get("batch.size", settings.batch_size(config))), settings.largest(config))


def age(config: MessagingConfig, topic: Topic, _checkup: Any) -> Iterator[Finding]:
    """How long a topic keeps messages."""
    kept, needed = kept_secs(topic), retries_secs(config)
    mend = change(config, topic.name, "retention.ms", 604_800_000)
    if kept is not None and kept <= needed:
        yield broken(f"{topic.name} keeps messages {spoken(kept)}, and retries may take {spoken(needed)}", mend)
    elif kept is not None and kept < _A_DAY:
        yield warning(
            f"{topic.name} keeps messages {spoken(kept)}: a group that stands still for a night loses some", mend
        )
    else:
        yield ok(f"{topic.name} keeps messages {'for ever' if kept is None else spoken(kept)}")


def kept_secs(topic: Topic) -> float | None:
    """Seconds that a topic keeps messages; ``None`` is for ever."""
    kept = int(topic.settings.get("retention.ms", -1))
    return None if kept < 0 else kept / 1000


# Groups.


def sessions(kafka: KafkaConfig, broker: Mapping[str, str]) -> Iterator[Finding]:
    """The session time-out within what the broker allows."""
    if not broker or kafka.group_protocol != "classic":
        yield not_done("it is the broker's own" if broker else "brokers' settings cannot be read")
        return
    least, most = (int(broker[f"group.{which}.session.timeout.ms"]) for which in ("min", "max"))
    what = f"kafka.session_timeout_ms is {kafka.session_timeout_ms:,}, the brokers allow {least:,} to {most:,}"
    if least <= kafka.session_timeout_ms <= most:
        yield ok(what)
    else:
        yield broken(what, f"kafka.session_timeout_ms = {min(max(kafka.session_timeout_ms, least), most)}")


def places(broker: Mapping[str, str], topics: Sequence[Topic]) -> Iterator[Finding]:
    """How long the broker keeps a place, against what is there to be read from it."""
    if not broker:
        yield not_done("brokers' settings cannot be read")
        return
    kept = int(broker["offsets.retention.minutes"]) * 60
    needed = max((min(kept_secs(topic) or _A_WEEK, _A_WEEK) for topic in topics if topic.settings), default=0.0)
    what = (
        f"places are kept {spoken(kept)}, messages {spoken(needed)} or longer"
        if needed
        else f"places are kept {spoken(kept)}"
    )
    if kept >= needed:
        yield ok(what)
    else:
        yield warning(what, f"offsets.retention.minutes={needed / 60:.0f} in server.properties of every broker")


def passed_over(kafka: KafkaConfig, group: str, place: TopicPartition, missing: int) -> Finding:
    """A group's place that the topic does not have any more, so that its next subscription ends with ``lost_place``."""
    where = f"--group {group} --topic {place.topic}:{place.partition}"
    return broken(
        f"{group}: {missing:,} messages of {place.topic}-{place.partition} were deleted unread",
        f"{_tool(kafka, 'consumer-groups')} {where} --reset-offsets --to-earliest --execute; "
        "a longer retention.ms for the next time",
    )


def lag(
    kafka: KafkaConfig, group: str, unread: Mapping[str, int], oldest: Mapping[str, float], topics: Mapping[str, Topic]
) -> Iterator[Finding]:
    """How much of its time the oldest unread message of each topic has behind it."""
    if not unread:
        yield ok(f"{group} has read all that there is")
    elif not oldest:
        what = f"{group}: {sum(unread.values()):,} unread; how old they are is not known, since none can be read"
        yield warning(what, Acls(kafka).topic("Read", next(iter(unread))))
    for topic, stored in oldest.items():
        kept, behind = kept_secs(topics[topic]), max(0.0, time() - stored)
        what = f"{group}: {unread[topic]:,} unread, the oldest of {topic} is {spoken(behind)} old"
        if kept is None or behind < HALF * kept:
            yield ok(what)
            continue
        longer = f"--alter --entity-type topics --entity-name {topic} --add-config retention.ms={2000 * kept:.0f}"
        yield warning(
            f"{what}, and is deleted when it is {spoken(kept)} old",
            f"{_tool(kafka, 'configs')} {longer}; then more or faster consumers",
        )
